package vmtest
import ("context";"io";"time")
type Matrix struct { Packages, Kernels []string; Pattern string; Timeout time.Duration; Log io.Writer}
func (m Matrix) Run(context.Context, string) (int, error) { return 0, nil}
