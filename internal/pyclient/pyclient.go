// Package pyclient makes the Python client of the agent's API from its OpenAPI document: one typed file that needs the standard library only.
package pyclient

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

//go:generate go test -run TestClientIsCurrent . -update

//go:embed runtime.py
var runtime string

const head = `# Generated from the agent's OpenAPI document: do not edit. (go generate ./internal/pyclient)
# SPDX-License-Identifier: Apache-2.0
"""Client of the local API of the Pavise agent. It needs Python 3.8 or newer, and nothing else.

    import pavise

    agent = pavise.Client()
    print(agent.status()["generation"])
    agent.apply_policies(open("nginx.yaml").read(), file="nginx.yaml", confirm_within="60s")
    agent.confirm()
    for event in agent.events(follow=True, where='action == "deny"'):
        print(event["process"]["exe"]["path"], event["file"]["path"])

What the agent refuses is an APIError. An agent that does not answer is an OSError. A Client may be used by several threads. There may be
more in an answer than its type says: an agent that is newer than this file.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import time
import urllib.parse
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, TypedDict, Union

SOCKET = "/run/pavise/pavise.sock"

`

type schema struct {
	Ref         string             `json:"$ref"`
	AllOf       []*schema          `json:"allOf"`
	Type        string             `json:"type"`
	Format      string             `json:"format"`
	Description string             `json:"description"`
	Enum        []string           `json:"enum"`
	Items       *schema            `json:"items"`
	Properties  map[string]*schema `json:"properties"`
	Required    []string           `json:"required"`
	Additional  json.RawMessage    `json:"additionalProperties"`
	Parts       string             `json:"x-pavise-parts"`
}

type media map[string]struct{ Schema *schema }

type operation struct {
	method, path string

	ID         string `json:"operationId"`
	Summary    string
	Role       string `json:"x-pavise-role"`
	Parameters []struct {
		Name, In, Description string
		Schema                *schema
	}
	RequestBody *struct {
		Description string
		Content     media
	}
	Responses map[string]struct{ Content media }
}

// Generate makes the client's source.
func Generate(openAPI []byte) (string, error) {
	var doc struct {
		Paths      map[string]map[string]*operation
		Components struct{ Schemas map[string]*schema }
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		return "", fmt.Errorf("read the OpenAPI document: %w", err)
	}
	var b strings.Builder
	b.WriteString(head)
	for _, name := range slices.Sorted(maps.Keys(doc.Components.Schemas)) {
		if err := class(&b, name, doc.Components.Schemas[name]); err != nil {
			return "", err
		}
	}
	b.WriteString("\n" + runtime + "\n\nclass Client(_Base):\n\t\"\"\"An agent, by its socket. Its methods are the requests that the API answers.\"\"\"\n")
	var ops []*operation
	for path, methods := range doc.Paths {
		for method, op := range methods {
			op.method, op.path = strings.ToUpper(method), path
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b *operation) int { return strings.Compare(a.ID, b.ID) })
	for _, op := range ops {
		if err := method(&b, op); err != nil {
			return "", fmt.Errorf("%s %s: %w", op.method, op.path, err)
		}
	}
	return strings.ReplaceAll(b.String(), "\t", "    "), nil
}

// class writes the type of an object: what is always there, and then what may be.
func class(b *strings.Builder, name string, s *schema) error {
	if s.Type != "object" {
		return fmt.Errorf("schema %s is of type %q, not an object", name, s.Type)
	}
	var always, maybe []string
	for _, p := range slices.Sorted(maps.Keys(s.Properties)) {
		if slices.Contains(s.Required, p) {
			always = append(always, p)
		} else {
			maybe = append(maybe, p)
		}
	}
	write := func(name, base, options, doc string, keys []string) error {
		if slices.ContainsFunc(keys, func(k string) bool { return python(k) != k }) { // a key that is no name
			if base != "TypedDict" {
				return fmt.Errorf("schema %s: %v cannot be written in a class", name, keys)
			}
			fmt.Fprintf(b, "\n\n%s = TypedDict(\n\t\"%s\",\n\t{\n", name, name)
			for _, k := range keys {
				t, err := typeOf(s.Properties[k])
				if err != nil {
					return err
				}
				fmt.Fprintf(b, "\t\t%q: %q,%s\n", k, t, comment(s.Properties[k]))
			}
			fmt.Fprintf(b, "\t},\n%s)\n", options)
			return nil
		}
		if options != "" {
			options = ", " + strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(options), ","))
		}
		fmt.Fprintf(b, "\n\nclass %s(%s%s):\n", name, base, options)
		if doc != "" {
			fmt.Fprintf(b, "\t\"\"\"%s\"\"\"\n\n", text(doc))
		}
		if len(keys) == 0 {
			b.WriteString("\tpass\n")
		}
		for _, k := range keys {
			t, err := typeOf(s.Properties[k])
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "\t%s: %s%s\n", k, t, comment(s.Properties[k]))
		}
		return nil
	}
	switch {
	case len(maybe) == 0:
		return write(name, "TypedDict", "", s.Description, always)
	case len(always) == 0:
		return write(name, "TypedDict", "\ttotal=False,\n", s.Description, maybe)
	}
	if err := write("_"+name, "TypedDict", "", "", always); err != nil {
		return err
	}
	return write(name, "_"+name, "\ttotal=False,\n", s.Description, maybe)
}

func method(b *strings.Builder, op *operation) error {
	var positional, keyword, docs, query []string
	path := op.path
	for _, p := range op.Parameters {
		t, err := typeOf(p.Schema)
		if err != nil {
			return err
		}
		name := python(p.Name)
		docs = append(docs, name+": "+p.Description)
		if p.In == "path" {
			positional = append(positional, name+": "+t)
			path = strings.Replace(path, "{"+p.Name+"}", "{_segment("+name+")}", 1)
		} else {
			keyword = append(keyword, fmt.Sprintf("%s: Optional[%s] = None", name, t))
			query = append(query, fmt.Sprintf("%q: %s", p.Name, name))
		}
	}
	body := ""
	if rb := op.RequestBody; rb != nil {
		if parts, ok := rb.Content["multipart/form-data"]; ok {
			if len(parts.Schema.Required) != 1 || parts.Schema.Parts == "" {
				return fmt.Errorf("multipart/form-data of another form than one part, and others by a prefix")
			}
			positional = append(positional, "policies: Union[str, bytes]", "sets: Optional[Mapping[str, bytes]] = None")
			docs = append(docs, "policies: YAML documents.", "sets: the files that they name with inSet, by these names.")
			body = fmt.Sprintf(", *_policies(policies, sets, %q, %q)", parts.Schema.Required[0], parts.Schema.Parts)
		} else if j, ok := rb.Content["application/json"]; ok {
			t, err := typeOf(j.Schema)
			if err != nil {
				return err
			}
			positional = append(positional, "body: "+t)
			body = `, json.dumps(body).encode(), "application/json"`
		} else {
			return fmt.Errorf("a body of unknown type")
		}
	}
	args := append([]string{"self"}, positional...)
	if len(keyword) > 0 {
		args = append(append(args, "*"), keyword...)
	}
	call, result := "", ""
	for kind, m := range op.Responses["200"].Content {
		t, err := typeOf(m.Schema)
		if err != nil {
			return err
		}
		switch kind {
		case "application/json":
			call, result = "_json", t
		case "application/x-ndjson":
			call, result = "_lines", "Iterator["+t+"]"
		case "text/plain":
			call, result = "_text", "str"
		default:
			return fmt.Errorf("an answer of type %s", kind)
		}
	}
	if call == "" {
		return fmt.Errorf("no answer")
	}
	fmt.Fprintf(b, "\n\tdef %s(%s) -> %s:\n", python(op.ID), strings.Join(args, ", "), result)
	fmt.Fprintf(b, "\t\t\"\"\"%s\n\n\t\t%s %s, role %s.\n", text(op.Summary), op.method, op.path, op.Role)
	if len(docs) > 0 {
		b.WriteString("\n")
	}
	for _, d := range docs {
		fmt.Fprintf(b, "\t\t%s\n", text(d))
	}
	b.WriteString("\t\t\"\"\"\n")
	quoted := fmt.Sprintf("%q", path)
	if path != op.path {
		quoted = "f" + quoted
	}
	fmt.Fprintf(b, "\t\treturn self.%s(%q, %s, {%s}%s)\n", call, op.method, quoted, strings.Join(query, ", "), body)
	return nil
}

// typeOf is a schema's Python type.
func typeOf(s *schema) (string, error) {
	switch {
	case s.Ref != "":
		return s.Ref[strings.LastIndex(s.Ref, "/")+1:], nil
	case len(s.AllOf) == 1:
		return typeOf(s.AllOf[0])
	}
	switch s.Type {
	case "":
		return "Any", nil
	case "boolean":
		return "bool", nil
	case "integer":
		return "int", nil
	case "number":
		return "float", nil
	case "string":
		return "str", nil
	case "array":
		t, err := typeOf(s.Items)
		return "List[" + t + "]", err
	case "object":
		var of schema
		if string(s.Additional) == "true" {
			return "Dict[str, Any]", nil
		}
		if err := json.Unmarshal(s.Additional, &of); err != nil {
			return "", fmt.Errorf("an object without properties: %w", err)
		}
		t, err := typeOf(&of)
		return "Dict[str, " + t + "]", err
	}
	return "", fmt.Errorf("no type for a schema of type %q", s.Type)
}

// comment is what a schema says of itself, at the end of a line.
func comment(s *schema) string {
	var says []string
	if s.Description != "" {
		says = append(says, s.Description)
	}
	if len(s.Enum) > 0 {
		says = append(says, strings.Join(s.Enum, ", "))
	}
	if s.Format == "byte" {
		says = append(says, "base64")
	}
	if len(says) == 0 {
		return ""
	}
	return "  # " + strings.Join(says, ": ")
}

// text is what may stand in a string of several lines.
func text(s string) string { return strings.NewReplacer(`\`, `\\`, `"""`, `'''`).Replace(s) }

var notName = regexp.MustCompile(`[^a-z0-9_]`)

// python is a name as Python writes it: dryRun and dry-run as dry_run, from as from_.
func python(s string) string {
	var b strings.Builder
	for i, r := range s {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	s = notName.ReplaceAllString(b.String(), "_")
	if slices.Contains(keywords, s) {
		s += "_"
	}
	return s
}

var keywords = strings.Fields(`and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass
	raise return try while with yield self`)
