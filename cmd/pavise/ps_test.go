package main

import (
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

func TestContainerText(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		p    pavise.Process
		want string
	}{
		{pavise.Process{Container: &pavise.Container{ID: id, Runtime: "docker"}}, "docker:0123456789ab"},
		{pavise.Process{Container: &pavise.Container{ID: id}}, "0123456789ab"},
		{pavise.Process{Container: &pavise.Container{ID: id, Runtime: "docker", Name: "web", Image: "nginx:1"}}, "docker:web (nginx:1)"},
		{pavise.Process{Container: &pavise.Container{ID: id, Runtime: "crio", Name: "web"}, Pod: &pavise.Pod{Namespace: "prod", Name: "p-0"}}, "crio:prod/p-0/web"},
		{pavise.Process{Container: &pavise.Container{ID: id, Runtime: "containerd"}, Pod: &pavise.Pod{Namespace: "prod", Name: "p-0"}}, "containerd:prod/p-0"},
		{pavise.Process{Container: &pavise.Container{ID: id, Runtime: "docker", Name: "web", Image: strings.Repeat("é", 50)}}, "docker:web (" + strings.Repeat("é", 35) + "…"},
	} {
		if got := containerText(&c.p); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
