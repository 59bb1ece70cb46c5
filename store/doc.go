// Package store keeps what the agent must not lose, on disk: the revisions of the policies. It knows files and nothing of what stands in them.
package store
