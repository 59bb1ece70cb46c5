package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRoutesByRole asks for each route with each role.
func TestRoutesByRole(t *testing.T) {
	a := newAgent(t, newFake(), func(c *Config) { c.Groups = Groups{Write: []string{"77"}} })
	h := a.guard(a.routes())
	asked := map[Role]int{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // streams end at once
	for _, rt := range a.routeList() {
		if rt.role < RoleRead || rt.role > RoleAdmin {
			t.Errorf("%s %s is for the role %s", rt.method, rt.path, rt.role)
		}
		// What reads only is for all who may read, and what changes is not.
		if (rt.method == "GET") != (rt.role == RoleRead) {
			t.Errorf("%s %s is for the role %s", rt.method, rt.path, rt.role)
		}
		for role := RoleNone; role < numRoles; role++ {
			w := httptest.NewRecorder()
			req := httptest.NewRequest(rt.method, pathParam.ReplaceAllString(rt.path, "1"), strings.NewReader("{}"))
			c := &conn{peer: &peer{UID: 1001}, role: role}
			h.ServeHTTP(w, req.WithContext(context.WithValue(ctx, connKey{}, c)))
			if refused := w.Code == http.StatusForbidden; refused != (role < rt.role) {
				t.Errorf("%s %s with the role %s: %d %s", rt.method, rt.path, role, w.Code, w.Body)
			} else if refused && !strings.Contains(w.Body.String(), fmt.Sprintf("%s %s needs the role %s, and uid 1001 has %s;", rt.method, rt.path, rt.role, role)) {
				t.Error(w.Body)
			}
		}
		asked[rt.role]++
	}
	for role := RoleRead; role < numRoles; role++ {
		if asked[role] == 0 {
			t.Errorf("nothing needs the role %s", role)
		}
	}
	// Outside of the server's connections nobody has a role, and what is not there says nothing to nobody.
	for _, path := range []string{"/v1/status", "/nothing"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestRoleOfPeer(t *testing.T) {
	r := &roles{self: 1000, overflow: [2]uint32{65534, 65534}, groups: map[uint32]Role{50: RoleRead, 51: RoleWrite, 52: RoleAdmin}}
	for _, tt := range []struct {
		p    peer
		want Role
	}{
		{peer{UID: 0, GID: 99}, RoleAdmin},
		{peer{UID: 1000}, RoleAdmin}, // the agent's own
		{peer{UID: 1001}, RoleNone},
		{peer{UID: 1001, GID: 0, Groups: []uint32{0}}, RoleNone},
		{peer{UID: 1001, GID: 50}, RoleRead},
		{peer{UID: 1001, GID: 50, Groups: []uint32{1, 51}}, RoleWrite},
		{peer{UID: 1001, GID: 51, Groups: []uint32{50}}, RoleWrite},
		{peer{UID: 1001, GID: 9, Groups: []uint32{52, 50}}, RoleAdmin},
		{peer{UID: 65534, GID: 65534, Groups: []uint32{65534}}, RoleNone},
	} {
		if got := r.of(&tt.p); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.p, got, tt.want)
		}
	}
	// An agent that runs as the user that stands for all unknown ones does not know itself.
	r.self = 65534
	if got := r.of(&peer{UID: 65534}); got != RoleNone {
		t.Errorf("the overflow user: %v", got)
	}
}

func TestGroups(t *testing.T) {
	r, err := newRoles(Groups{Read: []string{"root", "123"}, Write: []string{"123"}})
	must(t, err)
	if r.groups[0] != RoleRead || r.groups[123] != RoleWrite || len(r.groups) != 2 {
		t.Errorf("%v", r.groups)
	}
	for want, g := range map[string]Groups{
		`--read-group "no-such-group-here": no such group`:                           {Read: []string{"no-such-group-here"}},
		`--write-group "": no such group`:                                            {Write: []string{""}},
		`--admin-group "-1": no such group`:                                          {Admin: []string{"-1"}},
		`--admin-group "4294967295": no such group`:                                  {Admin: []string{"4294967295"}},
		`--read-group "4294967296": no such group`:                                   {Read: []string{"4294967296"}},
		fmt.Sprintf(`--read-group "%d": group %[1]d also stands for`, r.overflow[1]): {Read: []string{fmt.Sprint(r.overflow[1])}},
	} {
		if _, err := newRoles(g); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if mode, gid := r.mode(); mode != 0o600 || gid != -1 {
		t.Error(mode, gid)
	}
	if one, _ := newRoles(Groups{Admin: []string{"5"}}); one == nil {
		t.Error("a number is refused")
	} else if mode, gid := one.mode(); mode != os.FileMode(0o660) || gid != 5 {
		t.Error(mode, gid)
	}
}

func TestQuota(t *testing.T) {
	q := newQuota("things", 8, 2, 3)
	take := func(uid uint32, role Role, n int, want string) {
		t.Helper()
		for range n {
			must(t, q.take(uid, role))
		}
		if err := q.take(uid, role); want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	take(1, RoleRead, 3, "uid 1 has 3 open")
	take(2, RoleWrite, 3, "uid 2 has 3 open")
	take(3, RoleRead, 0, "the last 2 are kept for admins")
	take(4, RoleAdmin, 2, "too many things: 8 are the limit")
	q.give(1)
	take(3, RoleRead, 0, "the last 2 are kept for admins")
	q.give(4)
	q.give(4)
	take(1, RoleRead, 1, "uid 1 has 3 open")
	for _, uid := range []uint32{1, 1, 1, 2, 2, 2} {
		q.give(uid)
	}
	if q.n != 0 || len(q.by) != 0 {
		t.Errorf("%d are left: %v", q.n, q.by)
	}
}

func TestACL(t *testing.T) {
	got := acl([]uint32{300, 2})
	want := []byte{
		2, 0, 0, 0,
		1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255,
		8, 0, 6, 0, 2, 0, 0, 0, 8, 0, 6, 0, 44, 1, 0, 0,
		16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestWhoChanged: a revision is by whom the kernel says, whatever the request says.
func TestWhoChanged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be someone else")
	}
	const writers, uid = 54322, 1234
	a, c := running(t, newFake(), func(c *Config) {
		c.Groups, c.StateDir, c.Policies = Groups{Write: []string{fmt.Sprint(writers)}}, filepath.Join(t.TempDir(), "state"), parse(t, shadow("one", "monitor"))
	})
	openTo(t, a)
	got, err := connectAs(a.cfg.Socket, uid, writers, nil, "DELETE /v1/policies/one")
	if err != nil || !strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Fatal(got, err)
	}
	revs, _, err := c.Revisions(t.Context())
	must(t, err)
	by := revs[len(revs)-1].By
	if by.UID == nil || *by.UID != uid || int(by.PID) != os.Getpid() || revs[0].By.UID != nil {
		t.Errorf("%+v", revs)
	}
}
