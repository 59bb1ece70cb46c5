// Package policy is the language: it parses policies (YAML with CEL conditions), checks
// them, and compiles a whole set into one Image. It is pure: no kernel, no files, no
// clock; what it needs to know of the machine is passed in.
package policy
