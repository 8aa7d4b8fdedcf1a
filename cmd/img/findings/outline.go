package findings

import (
	"fmt"
	"io"
	"text/tabwriter"

	"img/dag/dockerfile"
)

type outline struct {
	Name        string         `json:"name,omitempty"`
	Description string         `json:"description,omitempty"`
	Args        []outlineArg   `json:"args,omitempty"`
	Secrets     []outlineMount `json:"secrets,omitempty"`
	SSH         []outlineMount `json:"ssh,omitempty"`
	Cache       []outlineCache `json:"cache,omitempty"`
	Sources     [][]byte       `json:"sources,omitempty"`
}

type outlineArg struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Value       string    `json:"value,omitempty"`
	Location    *location `json:"location,omitempty"`
}

type outlineMount struct {
	Name     string    `json:"name"`
	Required bool      `json:"required,omitempty"`
	Location *location `json:"location,omitempty"`
}

type outlineCache struct {
	ID       string    `json:"ID"`
	Location *location `json:"location,omitempty"`
}

// WriteOutline writes what a target can be given, as text or JSON.
func WriteOutline(w io.Writer, format string, o *dockerfile.Outline, src []byte) error {
	if format == JSON {
		return writeJSON(w, outlineJSON(o, src))
	}
	t := tables{w: w}
	if o.Name != "" || o.Description != "" {
		name := o.Name
		if name == "" {
			name = "(default)"
		}
		rows := [][]string{{"TARGET:", name}}
		if o.Description != "" {
			rows = append(rows, []string{"DESCRIPTION:", o.Description})
		}
		t.write(1, rows)
	}
	var args, caches [][]string
	for _, a := range o.Args {
		args = append(args, []string{a.Name, a.Value, a.Description})
	}
	for _, c := range o.Caches {
		caches = append(caches, []string{c.Name})
	}
	t.list([]string{"BUILD ARG", "VALUE", "DESCRIPTION"}, args)
	t.list([]string{"SECRET", "REQUIRED"}, required(o.Secrets))
	t.list([]string{"SSH", "REQUIRED"}, required(o.SSH))
	t.list([]string{"CACHE"}, caches)
	return t.err
}

func required(list []dockerfile.OutlineMount) (rows [][]string) {
	for _, m := range list {
		row := []string{m.Name, ""}
		if m.Required {
			row[1] = "true"
		}
		rows = append(rows, row)
	}
	return rows
}

// tables writes one table after the other, each followed by an empty line.
type tables struct {
	w   io.Writer
	err error
}

func (t *tables) list(head []string, rows [][]string) {
	if len(rows) > 0 {
		t.write(3, append([][]string{head}, rows...))
	}
}

func (t *tables) write(padding int, rows [][]string) {
	tw := tabwriter.NewWriter(t.w, 0, 0, padding, ' ', 0)
	writeRows(tw, rows)
	if err := tw.Flush(); err != nil && t.err == nil {
		t.err = err
	}
	fmt.Fprintln(t.w)
}

func writeRows(w io.Writer, rows [][]string) {
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				io.WriteString(w, "\t")
			}
			io.WriteString(w, cell)
		}
		io.WriteString(w, "\n")
	}
}

func outlineJSON(o *dockerfile.Outline, src []byte) outline {
	out := outline{Name: o.Name, Description: o.Description, Sources: [][]byte{src}}
	for _, a := range o.Args {
		where := at(0, a.Pos)
		out.Args = append(out.Args, outlineArg{a.Name, a.Description, a.Value, &where})
	}
	out.Secrets, out.SSH = mounts(o.Secrets), mounts(o.SSH)
	for _, c := range o.Caches {
		where := at(0, c.Pos)
		out.Cache = append(out.Cache, outlineCache{c.Name, &where})
	}
	return out
}

func mounts(list []dockerfile.OutlineMount) (out []outlineMount) {
	for _, m := range list {
		where := at(0, m.Pos)
		out = append(out, outlineMount{m.Name, m.Required, &where})
	}
	return out
}

type targetList struct {
	Targets []target `json:"targets"`
	Sources [][]byte `json:"sources"`
}

type target struct {
	Name        string    `json:"name,omitempty"`
	Default     bool      `json:"default,omitempty"`
	Description string    `json:"description,omitempty"`
	Base        string    `json:"base,omitempty"`
	Platform    string    `json:"platform,omitempty"`
	Location    *location `json:"location,omitempty"`
}

// WriteTargets writes the stages that can be built, as text or JSON.
func WriteTargets(w io.Writer, format string, list []dockerfile.TargetInfo, src []byte) error {
	if format == JSON {
		out := targetList{Sources: [][]byte{src}}
		for _, t := range list {
			where := at(0, t.Pos)
			out.Targets = append(out.Targets, target{t.Name, t.Default, t.Description, t.Base, t.Platform, &where})
		}
		return writeJSON(w, out)
	}
	rows := [][]string{{"TARGET", "DESCRIPTION"}}
	for _, t := range list {
		name := t.Name
		switch {
		case t.Default && name == "":
			name = "(default)"
		case t.Default:
			name += " (default)"
		}
		rows = append(rows, []string{name, t.Description})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	writeRows(tw, rows)
	return tw.Flush()
}
