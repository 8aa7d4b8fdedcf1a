package findings

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"img/dag"
	"img/dag/dockerfile"
)

func sample() []File {
	return []File{
		{Name: "a:b,c%", Source: []byte("FROM scratch\n"), Warnings: []dockerfile.Warning{
			{Pos: dag.Pos{File: "a:b,c%", Line: 2, End: 3, Col: 5}, Rule: "One", Text: "100%\nof it", Description: "All", URL: "https://example.com/one"},
			{Rule: "Two", Text: "nowhere"},
		}},
		{Name: "/abs/x y", Err: &dockerfile.Error{Pos: dag.Pos{File: "/abs/x y", Line: 1, End: 1}, Err: errors.New("bad")}},
		{Name: "c", Err: errors.New("unreadable")},
	}
}

func write(t *testing.T, format string, files []File) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, format, files, Options{}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What an input says cannot end a workflow command, or begin another property.
func TestGitHub(t *testing.T) {
	want := "::warning file=a%3Ab%2Cc%25,line=2,endLine=3,col=5,title=One::100%25%0Aof it\n" +
		"::warning file=a%3Ab%2Cc%25,title=Two::nowhere\n" +
		"::error file=/abs/x y,line=1::bad\n" +
		"::error file=c::unreadable\n"
	if got := write(t, GitHub, sample()); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// TestSARIF looks for what SARIF 2.1.0 requires of each object, and that rules are pointed to rightly.
func TestSARIF(t *testing.T) {
	for _, files := range [][]File{sample(), nil} {
		var log map[string]any
		if err := json.Unmarshal([]byte(write(t, SARIF, files)), &log); err != nil {
			t.Fatal(err)
		}
		if log["version"] != "2.1.0" || log["$schema"] == "" {
			t.Errorf("%v", log)
		}
		run := log["runs"].([]any)[0].(map[string]any)
		driver := run["tool"].(map[string]any)["driver"].(map[string]any)
		if driver["name"] != "img" {
			t.Errorf("driver %v", driver)
		}
		rules := driver["rules"].([]any)
		results := run["results"].([]any)
		if len(results) != 2*len(files)-len(files)/3*2 {
			t.Errorf("%d results of %d files", len(results), len(files))
		}
		for _, r := range results {
			r := r.(map[string]any)
			rule := rules[int(r["ruleIndex"].(float64))].(map[string]any)
			if r["ruleId"] != rule["id"] || r["message"].(map[string]any)["text"] == "" {
				t.Errorf("%v is of %v", r, rule)
			}
			at := r["locations"].([]any)[0].(map[string]any)["physicalLocation"].(map[string]any)
			uri := at["artifactLocation"].(map[string]any)["uri"].(string)
			if strings.ContainsAny(uri, " ") || strings.HasPrefix(uri, "/") || strings.HasPrefix(uri, "a:") {
				t.Errorf("uri %q", uri)
			}
			if region, ok := at["region"].(map[string]any); ok && region["startLine"].(float64) < 1 {
				t.Errorf("region %v", region)
			}
		}
	}
}

// BuildKit's JSON has a warning's place also where there is none.
func TestJSONWithoutPlace(t *testing.T) {
	out := write(t, JSON, sample())
	if !strings.Contains(out, `"detail": "nowhere",
      "location": {}`) {
		t.Error(out)
	}
	if empty := write(t, JSON, nil); empty != "{\n  \"warnings\": null,\n  \"sources\": null\n}\n" {
		t.Error(empty)
	}
}

// A file that cannot be built was not checked wholly, so nothing says that it was.
func TestTextOfFailure(t *testing.T) {
	if out := write(t, Text, sample()[1:]); out != "" {
		t.Error(out)
	}
	if err := Write(nil, "yaml", nil, Options{}); err == nil {
		t.Error("an unknown format is written")
	}
}
