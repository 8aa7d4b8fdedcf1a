package dockerfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"

	"img/dag"
)

// plans calls do with the plan of every case that has one.
func plans(t testing.TB, do func(name string, p *dag.Plan)) {
	files, err := filepath.Glob(filepath.Join(cases, "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range files {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		src, ok := file(a, "Dockerfile")
		f, err := Parse("Dockerfile", []byte(src))
		if !ok || err != nil {
			continue
		}
		if p, _, err := plan(f, options(t, a), bases(t, a)); err == nil {
			do(strings.TrimSuffix(filepath.Base(name), ".txtar"), &p.Plan)
			n++
		}
	}
	if n < 100 {
		t.Errorf("only %d plans", n)
	}
}

// A plan goes to a stream and back without loss, but for the proxy variables, which are the caller's; and so what checks a stream lets
// pass whatever lowering makes.
func TestStream(t *testing.T) {
	plans(t, func(name string, p *dag.Plan) {
		t.Run(name, func(t *testing.T) {
			var first, second bytes.Buffer
			if err := dag.Encode(&first, p); err != nil {
				t.Fatal(err)
			}
			text := first.String()
			back, err := dag.Decode("plan.jsonl", &first)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, v := range p.Graph.Vertices {
				if run, ok := v.Op.(*dag.Run); ok {
					run.ProxyEnv = nil
				}
			}
			if diff := cmp.Diff(p, back, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("%s\n%s", diff, text)
			}
			if err := dag.Encode(&second, back); err != nil || second.String() != text {
				t.Errorf("written again, it is\n%s%v\nnot\n%s", second.String(), err, text)
			}
		})
	})
}

// Any text is a mistake with a place, or a plan that goes to a stream and back.
func FuzzStream(f *testing.F) {
	plans(f, func(_ string, p *dag.Plan) {
		var b bytes.Buffer
		if err := dag.Encode(&b, p); err != nil {
			f.Fatal(err)
		}
		if b.Len() < 1<<13 {
			f.Add(b.Bytes())
		}
	})
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := dag.Decode("plan.jsonl", bytes.NewReader(text))
		if err != nil {
			var e *dag.StreamError
			if !errors.As(err, &e) || e.Pos.File != "plan.jsonl" || e.Pos.Line < 1 || e.Pos.Line > bytes.Count(text, []byte("\n"))+1 {
				t.Fatalf("%T without a place: %v", err, err)
			}
			return
		}
		var first, second bytes.Buffer
		if err := dag.Encode(&first, p); err != nil {
			t.Fatal(err)
		}
		again, err := dag.Decode("plan.jsonl", bytes.NewReader(first.Bytes()))
		if err != nil {
			t.Fatalf("%v\n%s", err, first.String())
		}
		if diff := cmp.Diff(p, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		if err := dag.Encode(&second, again); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("written again, it is\n%s%v\nnot\n%s", second.String(), err, first.String())
		}
		_ = (&Plan{Plan: *p}).String()
	})
}

// The schema describes what is written: every line of every plan is valid by it, and one with a field more is not.
func TestStreamSchema(t *testing.T) {
	raw, err := os.ReadFile("../../docs/instruction-stream.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	s := schema{root["$defs"].(map[string]any)}
	plans(t, func(name string, p *dag.Plan) {
		var b bytes.Buffer
		if err := dag.Encode(&b, p); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			var v map[string]any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			if err := s.check(v, root, ""); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, line)
			}
			v["unknown"] = true
			if s.check(v, root, "") == nil {
				t.Fatalf("%s: an unknown field is valid\n%s", name, line)
			}
		}
	})
}

// The fields of the schema are those of the ops, at every depth.
func TestStreamSchemaFields(t *testing.T) {
	raw, err := os.ReadFile("../../docs/instruction-stream.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root struct {
		Defs map[string]struct{ Properties map[string]any } `json:"$defs"`
	}
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]any{"IMAGE": dag.Image{}, "RUN": dag.Run{}, "COPY": dag.Copy{}, "HTTP": dag.HTTP{}, "GIT": dag.Git{},
		"MKDIR": dag.Mkdir{}, "MERGE": dag.Merge{}, "PACK": dag.Pack{}, "MANIFEST": dag.Manifest{}, "INDEX": dag.Index{}, "mount": dag.Mount{},
		"layer": dag.Layer{}, "source": dag.Source{}, "pos": dag.Pos{}} {
		for i := range reflect.TypeOf(of).NumField() {
			f := reflect.TypeOf(of).Field(i)
			field, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if _, ok := root.Defs[name].Properties[field]; !ok && field != "-" && f.Tag.Get("stream") != "-" {
				t.Errorf("%s has no %q", name, field)
			}
		}
	}
}

// A schema checks values by the part of JSON Schema that ours is written in; another keyword is an error.
type schema struct{ defs map[string]any }

func (s schema) check(v any, by map[string]any, at string) error {
	for _, keyword := range slices.Sorted(maps.Keys(by)) {
		if err := s.keyword(v, by, keyword, at); err != nil {
			return err
		}
	}
	return nil
}

func (s schema) keyword(v any, by map[string]any, keyword, at string) error {
	want := by[keyword]
	bad := func(ok bool) error {
		if ok {
			return nil
		}
		return fmt.Errorf("%s: %v is against %s %v", at, v, keyword, want)
	}
	object, _ := v.(map[string]any)
	list, _ := v.([]any)
	number, isNumber := v.(float64)
	text, isText := v.(string)
	switch keyword {
	case "$schema", "title", "description", "$defs":
		return nil
	case "$ref":
		return s.check(v, s.defs[strings.TrimPrefix(want.(string), "#/$defs/")].(map[string]any), at)
	case "type":
		_, isBool := v.(bool)
		return bad(map[string]bool{"object": object != nil, "array": list != nil, "string": isText, "boolean": isBool,
			"integer": isNumber && number == math.Trunc(number)}[want.(string)])
	case "const":
		return bad(reflect.DeepEqual(v, want))
	case "enum":
		return bad(slices.ContainsFunc(want.([]any), func(w any) bool { return reflect.DeepEqual(v, w) }))
	case "pattern":
		return bad(!isText || regexp.MustCompile(want.(string)).MatchString(text))
	case "minimum":
		return bad(!isNumber || number >= want.(float64))
	case "maximum":
		return bad(!isNumber || number <= want.(float64))
	case "minItems":
		return bad(list == nil || len(list) >= int(want.(float64)))
	case "maxItems":
		return bad(list == nil || len(list) <= int(want.(float64)))
	case "maxProperties":
		return bad(object == nil || len(object) <= int(want.(float64)))
	case "required":
		for _, name := range want.([]any) {
			if _, ok := object[name.(string)]; object != nil && !ok {
				return bad(false)
			}
		}
		return nil
	case "not":
		return bad(s.check(v, want.(map[string]any), at) != nil)
	case "oneOf":
		n := 0
		var errs []error
		for _, w := range want.([]any) {
			if err := s.check(v, w.(map[string]any), at); err != nil {
				errs = append(errs, err)
				continue
			}
			n++
		}
		if n != 1 {
			return fmt.Errorf("%s: %d of %s hold: %w", at, n, keyword, errors.Join(errs...))
		}
		return nil
	case "items":
		for i, e := range list {
			if err := s.check(e, want.(map[string]any), fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
		return nil
	case "properties", "additionalProperties":
		return s.members(object, by, keyword, at)
	}
	return fmt.Errorf("the keyword %s is not known here", keyword)
}

func (s schema) members(object, by map[string]any, keyword, at string) error {
	known, _ := by["properties"].(map[string]any)
	for name, e := range object {
		sub, ok := known[name].(map[string]any)
		if keyword == "additionalProperties" {
			if ok {
				continue
			}
			if sub, ok = by[keyword].(map[string]any); !ok {
				return fmt.Errorf("%s: there is no %q", at, name)
			}
		}
		if !ok {
			continue
		}
		if err := s.check(e, sub, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}
