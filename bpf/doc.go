// Package bpf holds the kernel programs and their loader: it loads, attaches, probes and
// reads the rings. It knows nothing of policies; enforce fills the tables.
package bpf
