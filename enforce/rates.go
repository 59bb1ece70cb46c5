package enforce

import "github.com/pavise-project/pavise/policy"

// rateCounts is how many counts of rates are kept: the least recently used one goes for another.
const rateCounts = 65536

// countRates makes the map of counts when the first Image with a rate is applied. It stays: counts go on over changes of policies.
func (e *Enforcer) countRates(img *policy.Image) error {
	if len(img.Rates) == 0 || e.counting {
		return nil
	}
	m, err := e.k.NewInner("rate_counts", rateCounts)
	if err != nil {
		return err
	}
	if err := e.k.SetInner("rate_counts", 0, m); err != nil {
		return err
	}
	e.counting = true
	return nil
}
