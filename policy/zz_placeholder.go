package policy

// Expr stands here until expr.go of the language arrives.
type Expr struct{}
