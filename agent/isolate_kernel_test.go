package agent

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// TestKernelIsolate cuts one of two programs in a network off: what it holds ends, and it reaches nothing new but what is excepted. The other one notices nothing.
func TestKernelIsolate(t *testing.T) {
	k, c := flowAgent(t)
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	w := newWorld(t)
	suspect, bystander := w.guest(t, "suspect"), w.guest(t, "bystander")
	const anything, denied = "", "operation not permitted"
	works := func(when string, w *world, d deed) {
		t.Helper()
		if got := w.do(t, d); got != "" {
			t.Errorf("%s: %s %s: %s", when, d.Act, d.To, got)
		}
	}
	fails := func(when string, d deed, how string) {
		t.Helper()
		if got := suspect.do(t, d); got == "" || !strings.Contains(got, how) {
			t.Errorf("%s: %s %s: %q, want it to fail with %q", when, d.Act, d.To, got, how)
		}
	}
	const off, kept, offUDP = "127.0.0.8:5432", "127.0.0.9:5432", "127.0.0.8:80"
	for _, w := range []*world{suspect, bystander} {
		for _, d := range []deed{{Act: "hold", To: off}, {Act: "hold", To: kept}, {Act: "hold-udp", To: offUDP}, {Act: "held", To: off}} {
			works("before", w, d)
		}
	}
	request := &IsolationRequest{Subject: IsolationSubject{PID: uint32(suspect.pid)}, Except: []string{kept}}
	got, err := c.Isolate(t.Context(), request, ApplyOptions{DryRun: true})
	must(t, err)
	if got.Cut.Closed != 0 || got.Isolation.Processes != 1 {
		t.Errorf("a dry run: %+v", got)
	}
	works("after a dry run", suspect, deed{Act: "held", To: off})

	got, err = c.Isolate(t.Context(), request, ApplyOptions{})
	must(t, err)
	i := got.Isolation
	t.Logf("%+v", got)
	if i.Name != "isolate-1" || i.Processes != 1 || !strings.Contains(i.What, "/suspect") || !slices.Equal(i.Except, []string{kept}) {
		t.Errorf("what is isolated: %+v", i)
	}
	if got.Cut.Closed != 2 || got.Cut.Kept != 1 || len(got.Cut.Failed) != 0 {
		t.Errorf("of its connections: %+v, want 2 closed and 1 kept", got.Cut)
	}
	fails("isolated", deed{Act: "held", To: off}, anything)
	fails("isolated", deed{Act: "held", To: offUDP}, anything)
	fails("isolated", deed{Act: "connect", To: off}, denied)
	fails("isolated", deed{Act: "mapped", To: "[::ffff:127.0.0.8]:5432"}, denied)
	fails("isolated", deed{Act: "udp", To: off}, denied)
	fails("isolated", deed{Act: "connect", To: "127.0.0.9:80"}, denied)
	if k.Machine()[pavise.OpSend].Deny {
		fails("isolated", deed{Act: "sendto", To: off}, denied)
		works("excepted", suspect, deed{Act: "sendto", To: kept})
	}
	works("excepted", suspect, deed{Act: "held", To: kept})
	works("excepted", suspect, deed{Act: "connect", To: kept})
	works("excepted", suspect, deed{Act: "udp", To: kept})
	for _, d := range []deed{{Act: "held", To: off}, {Act: "held", To: kept}, {Act: "held", To: offUDP}, {Act: "connect", To: off}, {Act: "udp", To: off}} {
		works("another process", bystander, d)
	}
	e := endedFlow(t, c, `flow.end == "cut-off" && process.exe.name == "suspect" && net.protocol == "tcp"`)
	if e.Flow.Remote.Address.String()+":5432" != off {
		t.Errorf("the flow that was cut off: %s", e.AppendText(nil, false))
	}
	denial := endedFlow(t, c, `flow.end == "denied" && process.exe.name == "suspect" && net.remote.address == "127.0.0.8" && net.protocol == "tcp"`)
	if denial.Policy != "isolate-1" {
		t.Errorf("a denied flow: %s", denial.AppendText(nil, false))
	}
	list, err := c.Isolations(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].Name != "isolate-1" || list[0].Since.IsZero() || !slices.Equal(list[0].Open, i.Open) {
		t.Errorf("the list: %+v", list)
	}

	if _, err := c.Release(t.Context(), "isolate-1", ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	works("released", suspect, deed{Act: "connect", To: off})
	works("released", suspect, deed{Act: "udp", To: off})
	fails("released", deed{Act: "held", To: off}, anything)

	for name, s := range map[string]IsolationSubject{"the agent": {PID: uint32(os.Getpid())}, "the first process": {PID: 1}} {
		var ae *APIError
		if _, err := c.Isolate(t.Context(), &IsolationRequest{Subject: s, Widen: true}, ApplyOptions{}); !errors.As(err, &ae) || ae.Status != 400 {
			t.Errorf("isolate %s: %v", name, err)
		}
	}
}

// TestKernelIsolateDatagrams: UDP sockets that are connected to nobody are silent after an isolation, both ways, but for what is excepted.
func TestKernelIsolateDatagrams(t *testing.T) {
	k, c := flowAgent(t)
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	w := newWorld(t)
	suspect, friend := w.guest(t, "suspect"), w.guest(t, "friend")
	do := func(when string, w *world, d deed) {
		t.Helper()
		if got := w.do(t, d); got != "" {
			t.Fatalf("%s: %s %s %s: %s", when, d.Act, d.Via, d.To, got)
		}
	}
	gets := func(when, from, to string) {
		t.Helper()
		do(when, friend, deed{Act: "give", Via: from, To: to})
		do(when, suspect, deed{Act: "take", To: to})
	}
	getsNot := func(when, from, to string) {
		t.Helper()
		do(when, friend, deed{Act: "give", Via: from, To: to})
		if got := suspect.do(t, deed{Act: "take", To: to}); !strings.Contains(got, "timeout") {
			t.Errorf("%s: from %s to %s: %q, want that nothing comes", when, from, to, got)
		}
	}
	sends := func(when, from, to string, allowed bool) {
		t.Helper()
		switch got := suspect.do(t, deed{Act: "give", Via: from, To: to}); {
		case !k.Machine()[pavise.OpSend].Deny: // the isolation says that it is left open
		case allowed && got == "":
			do(when, friend, deed{Act: "take", To: to})
		case allowed || !strings.Contains(got, "operation not permitted"):
			t.Errorf("%s: %s sends to %s: %q, allowed %v", when, from, to, got, allowed)
		}
	}
	const mine, any6, theirs, theirs6 = "127.0.0.1:7000", "[::1]:7001", "127.0.0.1:7100", "[::1]:7101"
	const good, bad, good6, bad6 = "127.0.0.3:7200", "127.0.0.4:7200", "[::1]:7202", "[::1]:7203"
	for _, s := range []string{theirs, theirs6, good, bad, good6, bad6} {
		do("before", friend, deed{Act: "open-udp", To: s})
	}
	for _, s := range []string{mine, any6} {
		do("before", suspect, deed{Act: "open-udp", To: s})
	}
	gets("before", theirs, mine)
	gets("before", theirs6, any6)
	sends("before", mine, theirs, true)

	subject := IsolationSubject{PID: uint32(suspect.pid)}
	got, err := c.Isolate(t.Context(), &IsolationRequest{Subject: subject}, ApplyOptions{})
	must(t, err)
	if got.Cut.Closed != 2 || got.Cut.Kept != 0 || len(got.Cut.Failed) != 0 {
		t.Errorf("of its sockets: %+v, want 2 closed", got.Cut)
	}
	for _, s := range []string{mine, any6} {
		if got := suspect.do(t, deed{Act: "take", To: s}); !strings.Contains(got, "connection abort") {
			t.Errorf("isolated: who waits on %s gets %q", s, got)
		}
	}
	getsNot("isolated", theirs, mine)
	getsNot("isolated", theirs6, any6)
	sends("isolated", mine, theirs, false)
	sends("isolated", any6, theirs6, false)
	do("another process", friend, deed{Act: "give", Via: theirs, To: good})
	do("another process", friend, deed{Act: "take", To: good})
	_, err = c.Release(t.Context(), got.Isolation.Name, ApplyOptions{})
	must(t, err)
	getsNot("released, the same socket", theirs, mine)

	// What is opened after that works, and only the excepted reach it when it is isolated again.
	const mine2, mine26 = "127.0.0.1:7010", "[::1]:7011"
	for _, s := range []string{mine2, mine26} {
		do("released", suspect, deed{Act: "open-udp", To: s})
	}
	gets("released", theirs, mine2)
	gets("released", bad6, mine26)
	got, err = c.Isolate(t.Context(), &IsolationRequest{Subject: subject, Except: []string{"127.0.0.2/31", good6}}, ApplyOptions{})
	must(t, err)
	if len(got.Cut.Failed) != 0 {
		t.Errorf("of its sockets: %+v", got.Cut)
	}
	gets("excepted", good, mine2)
	gets("excepted", good6, mine26)
	getsNot("not excepted", bad, mine2)
	getsNot("another port", bad6, mine26)
	sends("excepted", mine2, good, true)
	sends("not excepted", mine2, bad, false)

	// What a name means cannot be said by address: such a socket is left, and that is told.
	do("excepted", friend, deed{Act: "open-udp", To: "127.0.0.1:7300"})
	got, err = c.Isolate(t.Context(), &IsolationRequest{Subject: IsolationSubject{PID: uint32(friend.pid)}, Except: []string{"db.internal", "net.local.port == 7300"}}, ApplyOptions{})
	must(t, err)
	if got.Cut.Closed != 0 || len(got.Cut.Failed) != 7 || !strings.Contains(got.Cut.Failed[0], `it still receives: its peers that "db.internal" excepts`) {
		t.Errorf("of its sockets: %+v", got.Cut)
	}
	got, err = c.Isolate(t.Context(), &IsolationRequest{Subject: IsolationSubject{PID: uint32(friend.pid)}, Except: []string{"net.local.port == 7300"}}, ApplyOptions{})
	must(t, err)
	if got.Cut.Closed != 6 || got.Cut.Kept != 1 || len(got.Cut.Failed) != 0 {
		t.Errorf("of its sockets: %+v, want 6 closed and 1 kept", got.Cut)
	}
}

// TestKernelIsolateSockets: what sock_diag does not list receives nothing either after an isolation, and what is made later cannot be made, or gets no port.
func TestKernelIsolateSockets(t *testing.T) {
	k, c := flowAgent(t)
	m := k.Machine()
	if !m[pavise.OpConnect].Deny || !m[pavise.OpSend].Deny || !m[pavise.OpSocket].Deny {
		t.Skip(kerntest.NotExpected + "net.connect, net.send and net.socket cannot be denied")
	}
	w := newWorld(t)
	suspect, friend := w.guest(t, "suspect"), w.guest(t, "friend")
	const denied, theirs, good = "operation not permitted", "127.0.0.1:7100", "127.0.0.3:7200"
	works := func(when string, w *world, d deed) {
		t.Helper()
		if got := w.do(t, d); got != "" {
			t.Fatalf("%s: %s %s %s: %s", when, d.Act, d.Via, d.To, got)
		}
	}
	refused := func(when string, d deed) {
		t.Helper()
		if got := suspect.do(t, d); !strings.Contains(got, denied) {
			t.Errorf("%s: %s %s %s: %q, want %q", when, d.Act, d.Via, d.To, got, denied)
		}
	}
	port := func(socket string) string {
		t.Helper()
		n, ok := strings.CutPrefix(suspect.do(t, deed{Act: "port", To: socket}), "port ")
		if !ok {
			t.Fatalf("the port of %s: %q", socket, n)
		}
		return n
	}
	// hears has the friend send to a socket of the suspect's, and tells whether that comes.
	hears := func(socket string, from deed) bool {
		t.Helper()
		works(socket, friend, from)
		got := suspect.do(t, deed{Act: "take", To: socket})
		if got != "" && !strings.Contains(got, "timeout") && !strings.Contains(got, "connection abort") {
			t.Errorf("%s: %s", socket, got)
		}
		return got == ""
	}
	datagram := func(n string) deed { return deed{Act: "give", Via: theirs, To: "127.0.0.1:" + n} }
	raw := deed{Act: "raw", To: "127.0.0.1:0"}
	for _, s := range []string{theirs, good} {
		works("before", friend, deed{Act: "open-udp", To: s})
	}

	// The control: the kernel gives a port to who sends, and what comes is received.
	works("before", suspect, deed{Act: "open-socket", To: "early"})
	works("before", suspect, deed{Act: "give", Via: "early", To: theirs})
	works("before", friend, deed{Act: "take", To: theirs})
	works("before", suspect, raw)
	works("before", suspect, deed{Act: "open-raw", To: "raw"})
	if !hears("early", datagram(port("early"))) || !hears("raw", raw) {
		t.Fatal("nothing comes before the isolation")
	}
	works("before", suspect, deed{Act: "open-socket", To: "no port yet"})
	if n := port("no port yet"); n != "0" {
		t.Fatalf("a socket has port %s", n)
	}

	subject := IsolationSubject{PID: uint32(suspect.pid)}
	got, err := c.Isolate(t.Context(), &IsolationRequest{Subject: subject}, ApplyOptions{})
	must(t, err)
	t.Logf("%+v", got)
	if got.Cut.Closed != 3 || len(got.Cut.Failed) != 0 {
		t.Errorf("of its sockets: %+v, want 3 closed", got.Cut)
	}
	refused("isolated", deed{Act: "give", Via: "no port yet", To: theirs})
	refused("isolated", raw)
	for _, s := range []string{"early", "no port yet"} {
		if n := port(s); n != "0" && hears(s, datagram(n)) {
			t.Errorf("isolated: %s receives at port %s", s, n)
		}
	}
	if hears("raw", raw) {
		t.Error("isolated: a raw socket that it had receives")
	}
	refused("isolated", deed{Act: "open-raw", To: "raw 2"})
	if m[pavise.OpSocket].Rung == pavise.RungCgroup {
		refused("isolated", deed{Act: "open-socket", To: "late"})
		refused("isolated", deed{Act: "connect", To: "127.0.0.9:5432"})
	} else {
		works("isolated", suspect, deed{Act: "open-socket", To: "late"})
		refused("isolated", deed{Act: "give", Via: "late", To: theirs})
		if n := port("late"); n != "0" {
			t.Errorf("isolated: a new socket gets port %s", n)
		}
	}
	works("another process", friend, deed{Act: "open-socket", To: "other"})
	works("another process", friend, raw)
	if open := strings.Join(got.Isolation.Open, "\n"); strings.Contains(open, "UDP") || m[pavise.OpSocket].Rung == pavise.RungCgroup && !strings.Contains(open, "packet sockets, and raw sockets that it has already") {
		t.Errorf("left open: %s", open)
	}
	_, err = c.Release(t.Context(), got.Isolation.Name, ApplyOptions{})
	must(t, err)

	// With an exception UDP is possible, and what may come by it is told.
	works("released", suspect, raw)
	works("released", suspect, deed{Act: "open-raw", To: "raw 3"})
	works("released", suspect, deed{Act: "open-socket", To: "held"})
	got, err = c.Isolate(t.Context(), &IsolationRequest{Subject: subject, Except: []string{good}}, ApplyOptions{})
	must(t, err)
	if len(got.Cut.Failed) != 0 {
		t.Errorf("of its sockets: %+v", got.Cut)
	}
	works("excepted", suspect, deed{Act: "give", Via: "held", To: good})
	works("excepted", friend, deed{Act: "take", To: good})
	if !hears("held", deed{Act: "give", Via: good, To: "127.0.0.1:" + port("held")}) {
		t.Error("excepted: what comes from there is not received")
	}
	if hears("held", datagram(port("held"))) {
		t.Error("not excepted: what comes from there is received")
	}
	if hears("raw 3", raw) {
		t.Error("not excepted: a raw socket receives")
	}
	works("excepted", suspect, deed{Act: "open-socket", To: "new"})
	works("excepted", suspect, deed{Act: "give", Via: "new", To: good})
	refused("not excepted", deed{Act: "give", Via: "new", To: theirs})
	refused("not excepted", raw)
	if !strings.Contains(strings.Join(got.Isolation.Open, "\n"), "UDP sockets that it makes from now on") {
		t.Errorf("left open: %q", got.Isolation.Open)
	}
}
