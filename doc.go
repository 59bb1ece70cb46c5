// Package pavise is the vocabulary that every room of Pavise shares: events, processes
// and verdicts. It is also the wire format, one definition from the decoder to the
// browser. Types only: no I/O, standard library only.
package pavise
