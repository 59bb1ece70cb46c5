package pavise

import (
	"strings"
	"testing"
	"time"
)

func TestAppendText(t *testing.T) {
	fork := &Event{Op: OpFork, Process: sampleProcess(), PID: 1234}
	fork.Process.Container = nil
	exec := &Event{Op: OpExec, Process: sampleProcess(), PID: 1234}
	exec.Process.User.Name = ""
	hostile := sampleFile()
	hostile.File.Path = "/tmp/\x1b[2J a"
	unix := sampleNet()
	unix.Op, unix.Net = OpAccept, NetInfo{Family: FamilyUnix, LocalPath: "/run/x"}
	six := sampleNet()
	six.Op, six.Action, six.Net = OpBind, ActionAudit, NetInfo{Family: FamilyIPv6, Type: TypeDgram, LocalPort: 53}
	stricter := sampleFile()
	stricter.Monitor, stricter.Shadow, stricter.Active = true, DecisionDeny, DecisionWouldDeny
	laxer := sampleNet()
	laxer.Action, laxer.Shadow, laxer.Active = ActionAllow, DecisionAllow, DecisionKill
	for _, c := range []struct {
		e    *Event
		want string
	}{
		{stricter, `00:00:00.123456 9      would-deny  file.open     nginx[1234] www-data nginx.service/web /etc/shadow (read,write) (3 times)  (shadow: deny, active: would-deny)  secrets/shadow [high]  reads the shadow file`},
		{laxer, `00:00:00.123456 10     would-allow net.connect   nginx[1234] www-data nginx.service/web tcp 10.0.0.2:51234 -> 192.0.2.7:443  (shadow: allow, active: kill)  egress/internet`},
		{sampleFile(), `00:00:00.123456 9      deny        file.open     nginx[1234] www-data nginx.service/web /etc/shadow (read,write) (3 times)  secrets/shadow [high]  reads the shadow file`},
		{sampleNet(), `00:00:00.123456 10     would-kill  net.connect   nginx[1234] www-data nginx.service/web tcp 10.0.0.2:51234 -> 192.0.2.7:443  egress/internet`},
		{hostile, `00:00:00.123456 9      deny        file.open     nginx[1234] www-data nginx.service/web "/tmp/\x1b[2J a" (read,write) (3 times)  secrets/shadow [high]  reads the shadow file`},
		{unix, `00:00:00.123456 10     would-kill  net.accept    nginx[1234] www-data nginx.service/web unix /run/x  egress/internet`},
		{six, `00:00:00.123456 10     would-audit net.bind      nginx[1234] www-data nginx.service/web dgram [::]:53  egress/internet`},
		{exec, `00:00:00.000000 -      -           process.exec  nginx[1234] 33 nginx.service/web     nginx -g "daemon off;"`},
		{fork, `00:00:00.000000 -      -           process.fork  nginx[1234] www-data nginx.service   by systemd[1]`},
		{&Event{Op: OpExit, PID: 5, Exit: ExitInfo{Code: 3}}, `00:00:00.000000 -      -           process.exit  ?[5]                                 code 3`},
		{&Event{Op: OpLost, Lost: LostInfo{Op: OpOpen, Where: "kernel-ring", Count: 7}}, `00:00:00.000000 -      -           agent.lost    7 file.open events lost at kernel-ring`},
	} {
		if got := string(c.e.AppendTextIn(nil, false, time.UTC)); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		_ = c.e.AppendText(nil, true)
	}
	if s := string(sampleFile().AppendText(nil, true)); !strings.Contains(s, textRed+"deny") || !strings.HasSuffix(s, textReset) {
		t.Error(s)
	}
	if s := string(sampleNet().AppendText(nil, true)); !strings.Contains(s, textYellow+"would-kill") {
		t.Error(s)
	}
}

func TestAppendEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/ls": "/usr/bin/ls", "": `""`, "a b": `"a b"`, `a"\`: `"a\"\\"`, "é😀": "é😀",
		"\xff\x9b": `"\xff\x9b"`, "\u009b\u202e": `"\u009b\u202e"`, "a\nb": `"a\x0ab"`,
	} {
		if got := string(AppendEscaped(nil, in)); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}
