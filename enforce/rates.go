package enforce

import "github.com/pavise-project/pavise/policy"

// rateCounts is how many counts of rates are kept: the least recently used one goes for another.
const rateCounts = 65536

// countRates makes the map of counts when the first Image with a rate is applied, shade 0, or made the shadow, 1. It stays: counts go on over changes of
// policies. Those of a shadow end with it.
func (e *Enforcer) countRates(img *policy.Image, shade uint32) error {
	if len(img.Rates) == 0 || e.counting[shade] {
		return nil
	}
	m, err := e.k.NewInner("rate_counts", rateCounts)
	if err != nil {
		return err
	}
	if err := e.k.SetInner("rate_counts", shade, m); err != nil {
		return err
	}
	e.counting[shade] = true
	return nil
}
