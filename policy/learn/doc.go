// Package learn writes a least-privilege policy from what was seen: the acts of a subject, each kind of act with its count, its first and last time and an
// example, generalised as a person would and no further. The policy that comes of it is a candidate in monitor mode, never an enforced one.
package learn
