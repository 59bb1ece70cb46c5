// Package proc knows who acts: it keeps the tree of processes from lifecycle events, in bounded
// memory, and resolves an event's exec_id to its Process; it finds the unit and the container of a
// cgroup, what the container's runtime keeps of it on disk, and the names of users.
package proc
