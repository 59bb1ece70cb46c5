package agent

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Role is what a peer of the API may do. Each includes those before it.
type Role uint8

// The roles.
const (
	RoleNone  Role = iota
	RoleRead       // sees events, processes, policies and how the agent is
	RoleWrite      // changes the policies
	RoleAdmin      // changes the agent; root and the agent's own user have it
	numRoles
)

var roleNames = [numRoles]string{"none", "read", "write", "admin"}

func (r Role) String() string { return roleNames[min(r, numRoles-1)] }

// Groups are the groups whose members may use the API, by name or number, beside root and the agent's own user, who have the role admin.
type Groups struct {
	Read, Write, Admin []string
}

// roles says which role a peer has.
type roles struct {
	self     uint32 // the agent's own user
	overflow [2]uint32
	groups   map[uint32]Role
	names    [numRoles][]string // of the groups, as they were given
}

// newRoles looks the groups up. One that is not there is an error: a flag that lets nobody in is a mistake.
func newRoles(g Groups) (*roles, error) {
	r := &roles{
		self: uint32(os.Geteuid()), overflow: [2]uint32{overflowID("/proc/sys/kernel/overflowuid"), overflowID("/proc/sys/kernel/overflowgid")},
		groups: map[uint32]Role{},
	}
	for role, names := range [numRoles][]string{RoleRead: g.Read, RoleWrite: g.Write, RoleAdmin: g.Admin} {
		for _, name := range names {
			id, err := groupID(name)
			if err != nil {
				return nil, fmt.Errorf("--%s-group %q: %w", Role(role), name, err)
			}
			if id == r.overflow[1] {
				return nil, fmt.Errorf("--%s-group %q: group %d also stands for every group that is not known in this user namespace; give another", Role(role), name, id)
			}
			r.groups[id] = max(r.groups[id], Role(role))
			r.names[role] = append(r.names[role], name)
		}
	}
	return r, nil
}

// overflowID is the user or group that stands for those of another user namespace.
func overflowID(file string) uint32 {
	b, _ := os.ReadFile(file)
	if n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 32); err == nil {
		return uint32(n)
	}
	return 65534
}

func groupID(name string) (uint32, error) {
	s := name
	if g, err := user.LookupGroup(name); err == nil {
		s = g.Gid
	}
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || uint32(id) == ^uint32(0) {
		return 0, fmt.Errorf("no such group: give the name of one in /etc/group, or its number")
	}
	return uint32(id), nil
}

// of is the role of a peer. What the kernel says of a peer in another user namespace is in the agent's terms: its root is not root here.
func (r *roles) of(p *peer) Role {
	if p.UID == 0 || p.UID == r.self && p.UID != r.overflow[0] {
		return RoleAdmin
	}
	role := r.groups[p.GID]
	for _, g := range p.Groups {
		role = max(role, r.groups[g])
	}
	return role
}

// mode is the mode of the socket, and the group that it belongs to (-1: the agent's). Several groups are let in by an ACL.
func (r *roles) mode() (mode os.FileMode, group int) {
	if len(r.groups) == 1 {
		for g := range r.groups {
			return 0o660, int(g)
		}
	}
	return 0o600, -1
}

// refusal is why a peer may not do what needs a role, and what would help.
func (r *roles) refusal(what string, need Role, p *peer, has Role) error {
	var give []string
	for role := need; role < numRoles; role++ {
		for _, g := range r.names[role] {
			give = append(give, fmt.Sprintf("%s (--%s-group)", g, role))
		}
	}
	help := fmt.Sprintf("no group gives it: start the agent with --%s-group GROUP", need)
	if len(give) > 0 {
		help = "members of these groups have it: " + strings.Join(give, ", ")
	}
	return fmt.Errorf("not allowed: %s needs the role %s, and uid %d has %s; %s", what, need, p.UID, has, help)
}

// guarded lets those through who have the role.
func (r *roles) guarded(what string, need Role, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		c := connOf(req.Context())
		if c.role < need {
			fail(w, http.StatusForbidden, r.refusal(what, need, c.peer, c.role))
			return
		}
		next(w, req)
	}
}

// quota bounds what peers hold at once: all together, each user who is no admin, and those together so that some is left for admins.
type quota struct {
	what               string
	max, reserve, each int
	refused            atomic.Uint64

	mu sync.Mutex
	n  int
	by map[uint32]int // by user; who holds nothing is not in it
}

func newQuota(what string, limit, reserve, each int) *quota {
	return &quota{what: what, max: limit, reserve: reserve, each: each, by: map[uint32]int{}}
}

// take takes one for a user, until give.
func (q *quota) take(uid uint32, role Role) error {
	err := q.tryTake(uid, role)
	if err != nil {
		q.refused.Add(1)
	}
	return err
}

func (q *quota) tryTake(uid uint32, role Role) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if role < RoleAdmin {
		switch {
		case q.by[uid] >= q.each:
			return fmt.Errorf("too many %s: uid %d has %d open, the limit of one user", q.what, uid, q.each)
		case q.n >= q.max-q.reserve:
			return fmt.Errorf("too many %s: %d are the limit, and the last %d are kept for admins", q.what, q.max, q.reserve)
		}
	} else if q.n >= q.max {
		return fmt.Errorf("too many %s: %d are the limit", q.what, q.max)
	}
	q.n++
	q.by[uid]++
	return nil
}

// give gives one back.
func (q *quota) give(uid uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n--
	if q.by[uid]--; q.by[uid] == 0 {
		delete(q.by, uid)
	}
}

// Peer is who asks, as the kernel says.
type Peer struct {
	UID  uint32 `json:"uid"`
	PID  int32  `json:"pid,omitempty"` // 0 when it is in another PID namespace
	Role string `json:"role"`          // read, write or admin
}

// acl is a POSIX ACL (system.posix_acl_access) by which the owner and the groups read and write, and nobody else.
func acl(groups []uint32) []byte {
	const (
		userObj, groupObj, group, mask, other = 0x01, 0x04, 0x08, 0x10, 0x20
		rw                                    = 6
		nobody                                = ^uint32(0)
	)
	b := []byte{2, 0, 0, 0}
	entry := func(tag, perm uint16, id uint32) {
		b = append(b, byte(tag), byte(tag>>8), byte(perm), byte(perm>>8), byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	entry(userObj, rw, nobody)
	entry(groupObj, 0, nobody)
	for _, g := range slices.Sorted(slices.Values(groups)) {
		entry(group, rw, g)
	}
	entry(mask, rw, nobody)
	entry(other, 0, nobody)
	return b
}
