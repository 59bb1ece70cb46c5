// Package enforce brings a policy.Image into the kernel and keeps it there: it chooses the rungs by trying them, stages a generation
// beside the one that judges, activates it with one write, and knows what is enforced and by which rung. It alone knows
// the kernel's form of an Image.
package enforce
