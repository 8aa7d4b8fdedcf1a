package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"img/cmd/img/progress"
)

// A table is a list on its way to standard output: as columns, as JSON, or through a template over its values.
type table struct {
	Columns []string
	rows    [][]string
	values  []any
}

// add appends a row: the value for JSON and templates, the cells for people.
func (t *table) add(value any, cells ...string) {
	t.values = append(t.values, value)
	t.rows = append(t.rows, cells)
}

// print writes the list. format is "table" or "" (columns, a header even when empty), "json" (one array), or a Go
// template that is executed for each value, with `table ` before it for columns.
func (t *table) print(w io.Writer, format string) error {
	switch {
	case format == "" || format == "table":
		return t.columns(w)
	case format == "json":
		return printJSON(w, append([]any{}, t.values...))
	}
	format, aligned := strings.CutPrefix(format, "table ")
	tmpl, err := parseTemplate(format)
	if err != nil {
		return err
	}
	out := w
	var tw *tabwriter.Writer
	if aligned {
		tw = tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		out = tw
	}
	for _, v := range t.values {
		if err := execute(out, tmpl, v); err != nil {
			return err
		}
	}
	if aligned {
		return tw.Flush()
	}
	return nil
}

func (t *table) columns(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.Columns, "\t"))
	for _, row := range t.rows {
		for i, cell := range row {
			row[i] = cellText(cell)
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// cellText keeps a cell in its place: tabs and newlines would be columns and rows.
func cellText(s string) string {
	return strings.NewReplacer("\t", " ", "\n", " ").Replace(progress.Clean(s))
}

func parseTemplate(text string) (*template.Template, error) {
	// As Docker has it, `\t` and `\n` may be written out.
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Option("missingkey=error").Funcs(template.FuncMap{
		"json":  func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
	}).Parse(text)
	if err != nil {
		return nil, usagef("--format: %w", err)
	}
	return t, nil
}

// execute prints one value through a template, as one line.
func execute(w io.Writer, t *template.Template, v any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return usagef("--format: %w", err)
	}
	_, err := fmt.Fprintln(w, progress.Clean(b.String()))
	return err
}

func printJSON(w io.Writer, v any) error {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", "\t")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, progress.CleanJSON(out.String()))
	return err
}

// humanSize shows bytes in binary units with four significant digits, as the original img does: "1.181MiB".
func humanSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.4g%s", f, units[i])
}

// ago shows a time as "3 hours ago", "" if it is not known.
func ago(t, now time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "N/A"
	}
	d := now.Sub(t)
	switch {
	case d < time.Second:
		return "Less than a second ago"
	case d < time.Minute:
		return units(int(d.Seconds()), "second")
	case d < time.Hour:
		return units(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return units(int(d.Hours()), "hour")
	case d < 14*24*time.Hour:
		return units(int(d.Hours()/24), "day")
	case d < 60*24*time.Hour:
		return units(int(d.Hours()/24/7), "week")
	case d < 2*365*24*time.Hour:
		return units(int(d.Hours()/24/30), "month")
	}
	return units(int(d.Hours()/24/365), "year")
}

func units(n int, unit string) string {
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s ago", n, unit)
}

// shorten cuts a text to n runes unless all of it is wanted.
func shorten(s string, n int, whole bool) string {
	r := []rune(s)
	if whole || len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// shortDigest is the first 12 hex digits of a digest.
func shortDigest(s string, whole bool) string {
	if whole {
		return s
	}
	_, hex, ok := strings.Cut(s, ":")
	if !ok {
		hex = s
	}
	return hex[:min(12, len(hex))]
}

// filters are -f NAME=VALUE options; several values of one name are alternatives.
type filters map[string][]string

// parseFilters checks the names against those a command knows.
func parseFilters(list []string, known ...string) (filters, error) {
	out := filters{}
	for _, f := range list {
		name, value, ok := strings.Cut(f, "=")
		name = strings.TrimSuffix(name, "~") // containerd's regular-expression operator: ours matches parts
		if !ok {
			value = "true"
		}
		if !slices.Contains(known, name) {
			return nil, usagef("--filter %q: known filters are %s", f, strings.Join(known, ", "))
		}
		out[name] = append(out[name], value)
	}
	return out, nil
}

// part reports whether a text contains one of the values of a filter; true without the filter.
func (f filters) part(name, text string) bool {
	values, ok := f[name]
	if !ok {
		return true
	}
	for _, v := range values {
		if strings.Contains(text, v) {
			return true
		}
	}
	return false
}

// flag reports whether a yes-or-no filter agrees with what is; true without the filter.
func (f filters) flag(name string, is bool) bool {
	values, ok := f[name]
	return !ok || (values[len(values)-1] != "false" && values[len(values)-1] != "0") == is
}
