// Package findings writes what a check of Dockerfiles found, for people and for tools: as buildx prints it, as BuildKit's JSON, as
// SARIF and as GitHub's annotations. It decides how findings look, not what is one.
package findings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"img/dag"
	"img/dag/dockerfile"
)

// Formats of Write.
const (
	Text   = "text"
	JSON   = "json"
	SARIF  = "sarif"
	GitHub = "github"
)

// Formats are all of them.
var Formats = []string{Text, JSON, SARIF, GitHub}

// A File is a Dockerfile and what was found in it.
type File struct {
	// Name as positions have it; Source is its text.
	Name     string
	Source   []byte
	Warnings []dockerfile.Warning
	// Err is why it cannot be built, nil if it can.
	Err error
}

// Options of Write. The zero value works.
type Options struct {
	// Excerpt shows the lines of a position; nil shows none.
	Excerpt func(dag.Pos, []byte) string
}

// Write writes findings in a format. Text has no errors: who calls says them.
func Write(w io.Writer, format string, files []File, o Options) error {
	switch format {
	case Text:
		return writeText(w, files, o)
	case JSON:
		return writeJSON(w, lintResults(files))
	case SARIF:
		return writeJSON(w, sarifLog(files))
	case GitHub:
		return writeGitHub(w, files)
	}
	return fmt.Errorf("unknown format %q", format)
}

// count is how many warnings there are in files.
func count(files []File) (n int) {
	for _, f := range files {
		n += len(f.Warnings)
	}
	return n
}

// writeText writes as buildx does. With an error and no warnings it says nothing: the check was not complete.
func writeText(w io.Writer, files []File, o Options) error {
	var b bytes.Buffer
	failed := false
	for _, f := range files {
		failed = failed || f.Err != nil
	}
	switch n := count(files); {
	case n == 1:
		b.WriteString("Check complete, 1 warning has been found!\n")
	case n > 1:
		fmt.Fprintf(&b, "Check complete, %d warnings have been found!\n", n)
	case !failed:
		b.WriteString("Check complete, no warnings found.\n")
	}
	for _, f := range files {
		for _, x := range f.Warnings {
			fmt.Fprintf(&b, "\nWARNING: %s", x.Rule)
			if x.URL != "" {
				fmt.Fprintf(&b, " - %s", x.URL)
			}
			fmt.Fprintf(&b, "\n%s\n", x.Text)
			if !x.Pos.IsZero() && o.Excerpt != nil {
				b.WriteString(o.Excerpt(x.Pos, f.Source))
			}
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func writeJSON(w io.Writer, v any) error {
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(out, '\n'))
	return err
}

// What follows are the shapes of BuildKit's answers (frontend/subrequests, solver/pb), field by field. Columns BuildKit does not give.

type lintReport struct {
	Warnings []lintWarning `json:"warnings"`
	Sources  []source      `json:"sources"`
	Error    *buildError   `json:"buildError,omitempty"`
}

type lintWarning struct {
	RuleName    string    `json:"ruleName"`
	Description string    `json:"description,omitempty"`
	URL         string    `json:"url,omitempty"`
	Detail      string    `json:"detail,omitempty"`
	Location    *location `json:"location,omitempty"`
}

type buildError struct {
	Message  string   `json:"message"`
	Location location `json:"location"`
}

type source struct {
	Filename string `json:"filename,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Language string `json:"language,omitempty"`
}

type location struct {
	SourceIndex int        `json:"sourceIndex,omitempty"`
	Ranges      []rangePos `json:"ranges,omitempty"`
}

type rangePos struct {
	Start position `json:"start"`
	End   position `json:"end"`
}

type position struct {
	Line int `json:"line,omitempty"`
}

// at is a position as BuildKit has it: a range for each line.
func at(index int, pos dag.Pos) location {
	l := location{SourceIndex: index}
	for n := pos.Line; n > 0 && n <= max(pos.End, pos.Line); n++ {
		l.Ranges = append(l.Ranges, rangePos{position{n}, position{n}})
	}
	return l
}

func lintResults(files []File) lintReport {
	var out lintReport
	for i, f := range files {
		out.Sources = append(out.Sources, source{Filename: f.Name, Data: f.Source, Language: "Dockerfile"})
		for _, x := range f.Warnings {
			where := at(i, x.Pos)
			out.Warnings = append(out.Warnings, lintWarning{x.Rule, x.Description, x.URL, x.Text, &where})
		}
		if f.Err != nil && out.Error == nil {
			pos, text := failure(f)
			out.Error = &buildError{Message: text, Location: at(i, pos)}
		}
	}
	return out
}

// failure is an error's place and words.
func failure(f File) (dag.Pos, string) {
	var bad *dockerfile.Error
	if errors.As(f.Err, &bad) {
		return bad.Pos, bad.Err.Error()
	}
	return dag.Pos{File: f.Name}, f.Err.Error()
}

// writeGitHub writes workflow commands, which GitHub shows beside the lines.
func writeGitHub(w io.Writer, files []File) error {
	var b bytes.Buffer
	for _, f := range files {
		for _, x := range f.Warnings {
			command(&b, "warning", f.Name, x.Pos, x.Rule, x.Text)
		}
		if f.Err != nil {
			pos, text := failure(f)
			command(&b, "error", f.Name, pos, "", text)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// command is "::warning file=Dockerfile,line=2,endLine=3,col=1,title=Rule::text".
func command(b *bytes.Buffer, level, name string, pos dag.Pos, title, text string) {
	fmt.Fprintf(b, "::%s file=%s", level, property(name))
	if pos.Line > 0 {
		fmt.Fprintf(b, ",line=%d", pos.Line)
	}
	if pos.End > pos.Line {
		fmt.Fprintf(b, ",endLine=%d", pos.End)
	}
	if pos.Col > 0 {
		fmt.Fprintf(b, ",col=%d", pos.Col)
	}
	if title != "" {
		fmt.Fprintf(b, ",title=%s", property(title))
	}
	fmt.Fprintf(b, "::%s\n", message(text))
}

// What would end a command, or a property of one, is escaped as GitHub's runner reads it.
var (
	escapeMessage  = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	escapeProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

func message(s string) string  { return escapeMessage.Replace(s) }
func property(s string) string { return escapeProperty.Replace(s) }
