package main

import (
	"context"
	"fmt"
	"strings"

	"img/userns"
)

// DoctorCmd is `img doctor`.
type DoctorCmd struct {
	JSON   bool   `name:"json" help:"The same as --format=json."`
	Format string `placeholder:"FORMAT" help:"table (default), json or a Go template."`
}

// Run shows what this machine allows, and for each "no" what changes it.
func (c *DoctorCmd) Run(ctx context.Context, g *Globals) error {
	t := table{Columns: []string{"FACILITY", "OK", "STATE"}}
	var remedies []string
	for _, f := range userns.Facts(ctx, statePath(g.State, g.getenv)) {
		ok := "yes"
		if !f.OK {
			ok = "no"
			remedies = append(remedies, f.Name+": "+joinSentences(f.Effect, f.Remedy))
		}
		t.add(f, f.Name, ok, f.Value)
	}
	if c.JSON {
		c.Format = "json"
	}
	if err := t.print(g.stdout, c.Format); err != nil {
		return err
	}
	if c.Format == "" || c.Format == "table" {
		for _, r := range remedies {
			fmt.Fprintf(g.stdout, "\n%s\n", cellText(r))
		}
	}
	return nil
}

func joinSentences(parts ...string) string {
	var some []string
	for _, p := range parts {
		if p != "" {
			some = append(some, p)
		}
	}
	return strings.Join(some, "; ")
}
