package agent

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/pavise-project/pavise"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "with TestOpenAPI: write openapi.json and docs/openapi.yaml")

const apiDescription = `HTTP and JSON over the agent's Unix socket.

**Who may ask** is known from the kernel (SO_PEERCRED, SO_PEERGROUPS, when the connection is made). There are three roles; each includes those before it: read, write, admin.
Root and the agent's own user are admin; others get their role from the groups that the agent was started with. Each operation names its role as x-pavise-role.

**Errors** are an ErrorBody, also where no operation is named: 404 and 405 for what is not here, 503 when too much is open at once.

**Streams** (application/x-ndjson) are one JSON value a line; the schema is that of a line. A reader that is too slow misses events and is told how many; it never slows the agent.

**Version**: what is in /v1 stays as it is. Without another version there may come: operations, parameters that need not be given, fields of answers, values of enumerations,
and statuses of errors. Readers must pass over what they do not know; the agent refuses parameters and fields of requests that it does not know.`

// generator makes the OpenAPI document of the routes, of the types of their bodies, and of the comments in the source.
type generator struct {
	schemas map[string]any
	types   map[string]reflect.Type
	docs    map[string]string   // by package.Type and package.Type.Field
	enums   map[string][]string // by package.Type
}

// mirrors are the types of package pavise by which JSON is read, what their schemas are called, and what is always there.
var mirrors = map[string]struct {
	name     string
	required []string
}{
	"eventJSON": {"Event", []string{"id", "time", "op"}}, "processJSON": {"Process", []string{"exec_id", "pid"}}, "fileJSON": {"FileInfo", nil},
	"netJSON": {"NetInfo", []string{"family"}}, "targetJSON": {"Target", []string{"exec_id", "pid", "user"}}, "sourceJSON": {"Source", []string{"source"}},
	"endpointJSON": {"Endpoint", nil}, "listenerJSON": {"Listener", []string{"exec_id", "pid"}}, "idJSON": {"NumericID", []string{"id"}},
	"flowJSON": {"Flow", []string{"id", "report", "state", "local", "remote", "sent", "received", "sent_new", "received_new"}}, "flowSideJSON": {"FlowSide", nil},
	"dnsJSON": {"DNS", []string{"id", "client", "server", "query", "type", "code"}},
}

func newGenerator(t *testing.T) *generator {
	t.Helper()
	g := &generator{schemas: map[string]any{}, types: map[string]reflect.Type{}, docs: map[string]string{}, enums: map[string][]string{}}
	for _, dir := range []string{"..", ".", "../policy", "../policy/learn", "../store"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		must(t, err)
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
			must(t, err)
			for _, d := range f.Decls {
				if d, ok := d.(*ast.GenDecl); ok {
					g.read(f.Name.Name, d)
				}
			}
		}
	}
	for name, of := range map[string][]string{
		"pavise.Event.op": pavise.OpNames[:], "pavise.EventLost.op": pavise.OpNames[:],
		"pavise.Event.action": namesOf(pavise.NumActions), "pavise.Event.rung": namesOf(pavise.NumRungs),
		"pavise.Event.shadow": namesOf(pavise.NumDecisions), "pavise.Event.active": namesOf(pavise.NumDecisions),
	} {
		g.enums[name] = of
	}
	return g
}

func namesOf[T interface {
	~uint8
	fmt.Stringer
}](n T) (out []string) {
	for i := range n {
		out = append(out, i.String())
	}
	return out
}

// read keeps the comments of types and their fields, and the constants of types.
func (g *generator) read(pkg string, d *ast.GenDecl) {
	text := func(groups ...*ast.CommentGroup) string {
		for _, c := range groups {
			if s := strings.Join(strings.Fields(c.Text()), " "); s != "" {
				return s
			}
		}
		return ""
	}
	for _, spec := range d.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			name := pkg + "." + spec.Name.Name
			g.docs[name] = text(spec.Doc, d.Doc)
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, n := range f.Names {
						g.docs[name+"."+n.Name] = text(f.Comment, f.Doc)
					}
				}
			}
		case *ast.ValueSpec:
			if t, ok := spec.Type.(*ast.Ident); ok && d.Tok == token.CONST {
				for _, v := range spec.Values {
					if l, ok := v.(*ast.BasicLit); ok && l.Kind == token.STRING {
						s, _ := strconv.Unquote(l.Value)
						g.enums[pkg+"."+t.Name] = append(g.enums[pkg+"."+t.Name], s)
					}
				}
			}
		}
	}
}

// schema is the schema of a type's JSON. Name is for one that has none.
func (g *generator) schema(t reflect.Type, name string) map[string]any {
	event, process := pavise.JSONForms()
	switch t {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[time.Duration]():
		return map[string]any{"type": "integer", "format": "int64", "description": "nanoseconds"}
	case reflect.TypeFor[pavise.Event]():
		t = reflect.TypeOf(event)
	case reflect.TypeFor[pavise.Process]():
		t = reflect.TypeOf(process)
	case reflect.TypeFor[pavise.NamespaceSet]():
		return map[string]any{"type": "array", "items": map[string]any{"type": "string", "enum": pavise.NamespaceNames[:]}}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.schema(t.Elem(), name)
	case reflect.Interface:
		return map[string]any{}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		s := map[string]any{"type": "string"}
		if e := g.enums[t.String()]; e != nil {
			s["enum"] = e
		}
		return s
	case reflect.Int, reflect.Int32, reflect.Int64:
		return map[string]any{"type": "integer", "format": "int64"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return map[string]any{"type": "integer", "format": "int64", "minimum": 0}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "format": "byte"}
		}
		return map[string]any{"type": "array", "items": g.schema(t.Elem(), name)}
	case reflect.Map:
		if t.Elem().Kind() == reflect.Interface {
			return map[string]any{"type": "object", "additionalProperties": true}
		}
		return map[string]any{"type": "object", "additionalProperties": g.schema(t.Elem(), name)}
	case reflect.Struct:
		return map[string]any{"$ref": "#/components/schemas/" + g.object(t, name)}
	}
	panic("no schema of " + t.String())
}

// object adds the schema of a struct, and returns its name.
func (g *generator) object(t reflect.Type, name string) string {
	m, mirror := mirrors[t.Name()]
	if mirror {
		name = m.name
	} else if t.Name() != "" {
		name = t.Name()
	}
	if was, ok := g.types[name]; ok {
		if was != t {
			panic(fmt.Sprintf("two types are called %s: %v and %v", name, was, t))
		}
		return name
	}
	g.types[name] = t
	s := map[string]any{"type": "object"}
	pkg := "agent"
	if i := strings.LastIndex(t.String(), "."); i >= 0 && t.Name() != "" {
		pkg = strings.TrimPrefix(t.String()[:i], "*")
	} else if strings.HasPrefix(name, "Event") || strings.HasPrefix(name, "Target") {
		pkg = "pavise"
	}
	properties, required := map[string]any{}, slices.Clone(m.required)
	g.fields(t, pkg, name, properties, &required, mirror || pkg == "pavise" && t.Name() == "")
	s["properties"] = properties
	if d := g.docs[pkg+"."+name]; d != "" {
		s["description"] = d
	}
	if len(required) > 0 {
		slices.Sort(required)
		s["required"] = required
	}
	g.schemas[name] = s
	return name
}

func (g *generator) fields(t reflect.Type, pkg, name string, properties map[string]any, required *[]string, optional bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && key == "" {
			sub, subPkg := f.Type.Name(), strings.Split(f.Type.String(), ".")[0]
			m, mirror := mirrors[sub]
			if mirror {
				sub = m.name
				*required = append(*required, m.required...)
			}
			g.fields(f.Type, subPkg, sub, properties, required, optional || mirror)
			continue
		}
		if key == "-" || !f.IsExported() {
			continue
		}
		if key == "" {
			panic(fmt.Sprintf("%v.%s has no JSON name", t, f.Name))
		}
		s := g.schema(f.Type, name+f.Name)
		if f.Type == reflect.TypeFor[json.RawMessage]() { // an event as it is
			s = g.schema(reflect.TypeFor[pavise.Event](), "")
		}
		if slices.Contains(strings.Split(opts, ","), "string") {
			s = map[string]any{"type": "string", "pattern": "^[0-9]+$"}
		}
		if e := g.enums[pkg+"."+name+"."+key]; e != nil {
			s["enum"] = e
		}
		if d := g.docs[pkg+"."+name+"."+f.Name]; d != "" {
			if s["$ref"] != nil {
				s = map[string]any{"allOf": []any{s}}
			}
			s["description"] = d
		}
		properties[key] = s
		if !optional && !strings.Contains(opts, "omit") {
			*required = append(*required, key)
		}
	}
}

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

func (g *generator) operation(rt *route) map[string]any {
	op := map[string]any{"operationId": rt.id, "summary": rt.doc, "x-pavise-role": rt.role.String()}
	if rt.port {
		op["x-pavise-loopback"] = true
	}
	params := []any{}
	for _, m := range pathParam.FindAllStringSubmatch(rt.path, -1) {
		p := pathParams[m[1]]
		s := map[string]any{"type": "string"}
		if p.number {
			s = map[string]any{"type": "integer", "format": "int64", "minimum": 0}
		}
		params = append(params, map[string]any{"name": m[1], "in": "path", "required": true, "description": p.doc, "schema": s})
	}
	for _, p := range rt.query {
		s := map[paramKind]map[string]any{
			paramText: {"type": "string"}, paramSwitch: {"type": "boolean"}, paramCount: {"type": "integer", "format": "int64", "minimum": 0},
			paramDuration: {"type": "string", "format": "duration", "example": "60s"}, paramInterval: {"type": "string", "format": "duration", "example": "2s"}, paramWhere: {"type": "string", "format": "cel"},
			paramTime: {"type": "string", "format": "date-time"},
		}[p.kind]
		if p.many {
			s = map[string]any{"type": "array", "items": s}
		}
		d := map[string]any{"name": p.name, "in": "query", "description": p.doc, "schema": s}
		if p.role > rt.role {
			d["x-pavise-role"] = p.role.String()
		}
		params = append(params, d)
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	switch {
	case rt.body == (policiesBody{}):
		text := map[string]any{"type": "string"}
		op["requestBody"] = map[string]any{"required": true, "description": "Policies as YAML documents; the sets that they name come as parts.", "content": map[string]any{
			"application/yaml": map[string]any{"schema": text},
			"multipart/form-data": map[string]any{"schema": map[string]any{
				"type": "object", "required": []string{policyPart}, "properties": map[string]any{policyPart: text},
				"additionalProperties": map[string]any{"type": "string", "format": "binary"}, "description": "A part policy, and a part set:FILE for each set.",
				"x-pavise-parts": setPart,
			}},
		}}
	case rt.body != nil:
		op["requestBody"] = map[string]any{"required": true, "content": map[string]any{"application/json": map[string]any{"schema": g.schema(reflect.TypeOf(rt.body), "")}}}
	}
	kind, s := rt.kind, map[string]any{"type": "string"}
	if kind == "" {
		kind = "application/json"
	}
	if rt.answer != nil {
		s = g.schema(reflect.TypeOf(rt.answer), "")
	}
	answer := map[string]any{"description": "Done.", "content": map[string]any{kind: map[string]any{"schema": s}}}
	if kind == ndjson {
		answer["description"] = "A stream of lines; the schema is that of one."
	}
	responses := map[string]any{"200": answer}
	bad := g.schema(reflect.TypeFor[ErrorBody](), "")
	for _, code := range append(slices.Clone(alwaysFails), rt.fails...) {
		schema := bad
		if rt.id == "ready" && code == http.StatusServiceUnavailable {
			schema = map[string]any{"oneOf": []any{bad, s}}
		}
		responses[strconv.Itoa(code)] = map[string]any{"description": http.StatusText(code), "content": map[string]any{"application/json": map[string]any{"schema": schema}}}
	}
	op["responses"] = responses
	return op
}

func document(t *testing.T) map[string]any {
	g := newGenerator(t)
	paths := map[string]any{}
	a := newAgent(t, newFake(), nil)
	for _, rt := range a.routeList() {
		p, _ := paths[rt.path].(map[string]any)
		if p == nil {
			p = map[string]any{}
			paths[rt.path] = p
		}
		if p[strings.ToLower(rt.method)] != nil {
			t.Errorf("%s %s is there twice", rt.method, rt.path)
		}
		p[strings.ToLower(rt.method)] = g.operation(&rt)
	}
	return map[string]any{
		"openapi": "3.0.3", "info": map[string]any{"title": "Pavise agent", "version": "v1", "description": apiDescription, "license": map[string]any{"name": "Apache-2.0"}},
		"servers": []any{map[string]any{"url": "http://pavise", "description": "The Unix socket, " + DefaultSocket + " unless the agent was told another."}},
		"paths":   paths, "components": map[string]any{"schemas": g.schemas},
	}
}

// TestOpenAPI holds the document to the routes and their types, and to the standard.
func TestOpenAPI(t *testing.T) {
	doc := document(t)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	must(t, e.Encode(doc))
	var plain any
	must(t, json.Unmarshal(b.Bytes(), &plain))
	var y bytes.Buffer
	y.WriteString("# The API of the agent. Made of the code: go generate ./agent\n")
	ye := yaml.NewEncoder(&y)
	ye.SetIndent(2)
	must(t, ye.Encode(plain))
	for name, want := range map[string][]byte{"openapi.json": b.Bytes(), "../docs/openapi.yaml": y.Bytes()} {
		if *update {
			must(t, os.WriteFile(name, want, 0o644))
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code says (go generate ./agent): %v", name, err)
		}
	}
	d, err := openapi3.NewLoader().LoadFromData(b.Bytes())
	must(t, err)
	if err := d.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	for path, item := range d.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Summary == "" || op.OperationID == "" {
				t.Errorf("%s %s says nothing of itself", method, path)
			}
			for _, p := range op.Parameters {
				if p.Value.Description == "" {
					t.Errorf("%s %s: parameter %s says nothing of itself", method, path, p.Value.Name)
				}
			}
		}
	}
}

// TestOpenAPIServed asks for each operation of the document that is served.
func TestOpenAPIServed(t *testing.T) {
	_, c := running(t, newFake(), nil)
	code, text := ask(t, c, "GET", "/v1/openapi.json", nil)
	d, err := openapi3.NewLoader().LoadFromData([]byte(text))
	if err != nil || code != http.StatusOK || !bytes.Equal([]byte(text), openAPI) {
		t.Fatal(code, err)
	}
	n := 0
	for path, item := range d.Paths.Map() {
		for method := range item.Operations() {
			query := ""
			if path == "/v1/top" { // it has no end else
				query = "?count=1&interval=200ms"
			}
			code, got := ask(t, c, method, pathParam.ReplaceAllString(path, "1")+query, strings.NewReader("{}"))
			if code == http.StatusMethodNotAllowed || strings.Contains(got, "openapi.json says what there is") {
				t.Errorf("%s %s: %d %s", method, path, code, got)
			}
			code, got = ask(t, c, method, pathParam.ReplaceAllString(path, "1")+"?no-such=1", strings.NewReader("{}"))
			if code != http.StatusBadRequest || !strings.Contains(got, `no parameter \"no-such\" here`) {
				t.Errorf("%s %s?no-such=1: %d %s", method, path, code, got)
			}
			n++
		}
	}
	if n < 20 {
		t.Errorf("%d operations", n)
	}
}

// TestParametersAreRead holds what the handlers read of a query to what is declared, and nothing to be served past the list of routes.
func TestParametersAreRead(t *testing.T) {
	declared := map[string]bool{}
	a := newAgent(t, newFake(), nil)
	for _, rt := range a.routeList() {
		for _, p := range rt.query {
			declared[p.name] = true
		}
	}
	read := map[string]bool{}
	handles := map[string]int{}
	files, err := filepath.Glob("*.go")
	must(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "client.go" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		must(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			if i, ok := n.(*ast.IndexExpr); ok { // url.Values["name"]
				if l, ok := i.Index.(*ast.BasicLit); ok && l.Kind == token.STRING && fmt.Sprint(i.X) == "v" {
					s, _ := strconv.Unquote(l.Value)
					read[s] = true
				}
			}
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			var fn, on string
			switch f := call.Fun.(type) {
			case *ast.SelectorExpr:
				fn = f.Sel.Name
				on = fmt.Sprint(f.X)
			case *ast.Ident:
				fn = f.Name
			}
			if fn == "HandleFunc" || fn == "Handle" {
				handles[name]++
			}
			if fn == "FormValue" || fn == "ParseForm" {
				t.Errorf("%s: %s reads what is not declared", name, fn)
			}
			if (fn == "Get" || fn == "on") && len(call.Args) > 0 && !strings.Contains(on, "Header") {
				if l, ok := call.Args[len(call.Args)-1].(*ast.BasicLit); ok && l.Kind == token.STRING {
					s, _ := strconv.Unquote(l.Value)
					read[s] = true
				}
			}
			return true
		})
	}
	if !reflect.DeepEqual(read, declared) {
		t.Errorf("handlers read %v, and the routes declare %v", read, declared)
	}
	if !reflect.DeepEqual(handles, map[string]int{"routes.go": 1, "metrics.go": 1}) {
		t.Errorf("requests are served past the list of routes: %v", handles)
	}
}

// conformance holds every answer that a test gets to the document: its status, its kind, and its JSON, in which nothing may be that the document
// does not have.
type conformance struct {
	t    *testing.T
	next http.RoundTripper
}

var spec = sync.OnceValues(func() (*openapi3.T, error) {
	d, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		return nil, err
	}
	no := false
	for _, s := range d.Components.Schemas {
		if v := s.Value; v.AdditionalProperties.Has == nil && v.AdditionalProperties.Schema == nil {
			v.AdditionalProperties.Has = &no
		}
	}
	return d, nil
})

func (c *conformance) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	d, err := spec()
	if err != nil {
		return nil, err
	}
	schema := d.Components.Schemas["ErrorBody"]
	kind := "application/json"
	if op := operationOf(d, r); op != nil {
		answer := op.Responses.Status(res.StatusCode)
		if answer == nil {
			c.t.Errorf("%s %s: the document does not have the status %d", r.Method, r.URL.Path, res.StatusCode)
			return res, nil
		}
		for k, m := range answer.Value.Content {
			kind, schema = k, m.Schema
		}
	} else if res.StatusCode < 400 {
		c.t.Errorf("%s %s: %d, and the document does not have it", r.Method, r.URL.Path, res.StatusCode)
	}
	if got := res.Header.Get("Content-Type"); !strings.HasPrefix(got, kind) {
		c.t.Errorf("%s %s: content type %q, want %s", r.Method, r.URL.Path, got, kind)
	}
	res.Body = &conformingBody{ReadCloser: res.Body, c: c, what: r.Method + " " + r.URL.Path, schema: schema, kind: kind}
	return res, nil
}

// CloseIdleConnections lets http.Client.CloseIdleConnections through.
func (c *conformance) CloseIdleConnections() { c.next.(*http.Transport).CloseIdleConnections() }

func operationOf(d *openapi3.T, r *http.Request) *openapi3.Operation {
	mux := http.NewServeMux()
	for path, item := range d.Paths.Map() {
		for method := range item.Operations() {
			mux.HandleFunc(method+" "+path, func(http.ResponseWriter, *http.Request) {})
		}
	}
	_, pattern := mux.Handler(r)
	method, path, ok := strings.Cut(pattern, " ")
	if !ok {
		return nil
	}
	return d.Paths.Value(path).GetOperation(method)
}

// conformingBody checks JSON when it has been read: each line, or all of it.
type conformingBody struct {
	io.ReadCloser
	c          *conformance
	what, kind string
	schema     *openapi3.SchemaRef
	mu         sync.Mutex
	text       []byte
}

func (b *conformingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p[:n]...)
	for b.kind == ndjson || b.kind == "application/json" {
		line, rest, ok := bytes.Cut(b.text, []byte("\n"))
		if !ok {
			break
		}
		if b.what != "GET /v1/openapi.json" {
			b.check(line)
		}
		b.text = rest
	}
	return n, err
}

func (b *conformingBody) check(text []byte) {
	var v any
	err := json.Unmarshal(text, &v)
	if err == nil {
		err = b.schema.Value.VisitJSON(v, openapi3.EnableFormatValidation())
	}
	if err != nil {
		b.c.t.Errorf("%s answers what the document does not say: %v\n%.2000s", b.what, err, text)
	}
}

// TestEventsConform has events of each operation, with all that they can have, come as the document says.
func TestEventsConform(t *testing.T) {
	a, c := running(t, newFake(), nil)
	login := uint32(1000)
	n := 0
	for op := pavise.OpExec; op < pavise.NumOps; op++ {
		for _, value := range []uint64{0, 1, 2, 3, 17, 1<<63 | 5} {
			p := &pavise.Process{
				ExecID: 7, PID: 8, StartTime: 1, Found: true, Exe: pavise.FileInfo{Path: "/bin/x\x1b", Inode: 1 << 60, FS: "ext4", Mode: 0o755}, Script: "s", Args: []string{"a"}, ArgsCut: true,
				OnRoot: true, CWD: "/", ExeDigest: "sha256:1", ExeVerity: "sha256:2", TTY: true, User: pavise.User{ID: 1, Name: "u"}, LoginID: &login, Caps: value, SecureExec: true,
				Namespaces: pavise.Namespaces{Mnt: 1, Host: pavise.NSAll}, Cgroup: "/c", CgroupID: 5, Unit: "x.service",
				Container:    &pavise.Container{ID: "c", Runtime: "docker", Name: "n", Image: "i", Labels: map[string]string{"a": "b"}},
				Pod:          &pavise.Pod{Namespace: "ns", Name: "p", Labels: map[string]string{"a": "b"}},
				ParentExecID: 3, Parent: &pavise.Process{ExecID: 3, PID: 4, Exe: pavise.FileInfo{Path: "/sbin/init"}}, ExitTime: 9,
			}
			a.hub.publish(&pavise.Event{
				Time: 1, Op: op, Action: pavise.Action(value) % pavise.NumActions, Monitor: true, Rung: pavise.RungLSM, Shadow: pavise.DecisionDeny, Active: pavise.DecisionWouldKill,
				Matched: 1, Policy: "p", Rule: "r", Severity: "high", Message: "m", Count: 3, Process: p,
				File: pavise.FileInfo{Path: "/f", Alias: "/g", Truncated: true, Deleted: true, Memfd: true, Access: 0xff, Mode: 1, Owner: 1, Dev: 1, Inode: 1, Links: 1, FS: "x"},
				Net:  pavise.NetInfo{Family: uint16(value % 11), Type: 1, Protocol: 6, RemotePort: 1, LocalPort: 2, RemotePath: "@x", LocalPath: "/y"},
				Act:  pavise.ActInfo{Value: value, Value2: value, NewPath: "/n", Name: "n\x00m", Target: pavise.Target{ExecID: 1, PID: 2, UID: 3, Path: "/t"}},
				Exit: pavise.ExitInfo{Code: 1, Signal: 9}, Lost: pavise.LostInfo{Op: pavise.OpOpen, Where: "decode", Policy: "p", Count: 1},
			})
			n++
		}
	}
	a.hub.publish(&pavise.Event{Op: pavise.OpExit, PID: 5, ExecID: 6})
	got := 0
	must(t, c.Events(t.Context(), EventQuery{Limit: -1}, func(b []byte) error { got++; return nil }))
	if got != n+1 {
		t.Errorf("%d events, want %d", got, n+1)
	}
}
