package pyclient

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write clients/python/pavise.py")

// TestClientIsCurrent holds the client to the document of the API.
func TestClientIsCurrent(t *testing.T) {
	doc, err := os.ReadFile("../../agent/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Generate(doc)
	if err != nil {
		t.Fatal(err)
	}
	const name = "../../clients/python/pavise.py"
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s is not what the document says (go generate ./internal/pyclient): %v", name, err)
	}
}

func TestGenerateRefuses(t *testing.T) {
	for doc, want := range map[string]string{
		`{`: "read the OpenAPI document",
		`{"components": {"schemas": {"X": {"type": "string"}}}}`:                                                       `schema X is of type "string"`,
		`{"components": {"schemas": {"X": {"type": "object", "properties": {"a": {"type": "tuple"}}}}}}`:               `no type for a schema of type "tuple"`,
		`{"paths": {"/x": {"get": {"operationId": "x", "responses": {}}}}}`:                                            "GET /x: no answer",
		`{"paths": {"/x": {"get": {"operationId": "x", "responses": {"200": {"content": {"a/b": {"schema": {}}}}}}}}}`: "GET /x: an answer of type a/b",
		`{"paths": {"/x": {"put": {"requestBody": {"content": {"a/b": {}}}}}}}`:                                        "PUT /x: a body of unknown type",
	} {
		if _, err := Generate([]byte(doc)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
}

func TestPython(t *testing.T) {
	for in, want := range map[string]string{"dry-run": "dry_run", "applyPolicies": "apply_policies", "from": "from_", "id": "id"} {
		if got := python(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
