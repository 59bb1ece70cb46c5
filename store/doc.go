// Package store keeps what the agent must not lose, on disk: the revisions of the policies, and the history of what
// was seen. It knows files and nothing of what stands in them.
package store
