package enforce

import (
	"errors"
	"fmt"

	"github.com/pavise-project/pavise"
)

// What BenchmarkAgent needs of this package: an agent imports it, so that the benchmark stands outside.

var ShortProgram, Quantile = shortProgram, quantile[float64]

// ManyRules are policies of n rules in monitor mode, on four operations, that would deny. Only the conditions in match are met by anything.
func ManyRules(n int, match map[pavise.Op]string) (out []string) {
	ops := []pavise.Op{pavise.OpOpen, pavise.OpExec, pavise.OpConnect, pavise.OpAccept}
	for i, op := range ops {
		hit := match[op]
		if hit == "" {
			hit = `process.exe.path == "/nowhere/hit"`
		}
		out = append(out, many{(n + len(ops) - 1 - i) / len(ops), fmt.Sprintf("op%d-", op), op, pavise.ActionDeny, hit}.yaml()...)
	}
	return out
}

// Off detaches every program, which is what the end of an agent does to other processes, until on.
func (e *Enforcer) Off() (on func() error, err error) {
	links := e.k.Links()
	for _, p := range links {
		err = errors.Join(err, e.k.Detach(p))
	}
	return func() (err error) {
		for _, p := range links {
			err = errors.Join(err, e.k.Attach(p))
		}
		return err
	}, err
}
