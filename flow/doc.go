// Package flow is about connections: who made them, what they carried, what the addresses are called, and what is said in the clear before they are encrypted.
// It does nothing by itself: the agent gives it what the kernel reports, and what the kernel copied of packets.
package flow
