// Package decode is a placeholder; delete this file on merge.
package decode

import (
	"errors"

	"github.com/pavise-project/pavise"
)

func Decode(rec []byte, boot int64, e *pavise.Event) error { return errors.New("decode is not built yet") }
