package findings

import (
	"cmp"
	"net/url"
	"path/filepath"

	"img/dag"
	"img/dag/dockerfile"
)

// SARIF 2.1.0 (OASIS), as far as findings need it: one run, the rules that were broken, a result for each finding.

type sarif struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool       sarifTool     `json:"tool"`
	Results    []sarifResult `json:"results"`
	ColumnKind string        `json:"columnKind"`
}

type sarifTool struct {
	Driver sarifDriver `json:"driver"`
}

type sarifDriver struct {
	Name  string      `json:"name"`
	Rules []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID               string       `json:"id"`
	ShortDescription *sarifText   `json:"shortDescription,omitempty"`
	HelpURI          string       `json:"helpUri,omitempty"`
	Default          sarifDefault `json:"defaultConfiguration"`
}

type sarifDefault struct {
	Level string `json:"level"`
}

type sarifText struct {
	Text string `json:"text"`
}

type sarifResult struct {
	RuleID    string          `json:"ruleId"`
	RuleIndex int             `json:"ruleIndex"`
	Level     string          `json:"level"`
	Message   sarifText       `json:"message"`
	Locations []sarifLocation `json:"locations"`
}

type sarifLocation struct {
	Physical sarifPhysical `json:"physicalLocation"`
}

type sarifPhysical struct {
	Artifact sarifArtifact `json:"artifactLocation"`
	Region   *sarifRegion  `json:"region,omitempty"`
}

type sarifArtifact struct {
	URI string `json:"uri"`
}

type sarifRegion struct {
	StartLine   int `json:"startLine"`
	StartColumn int `json:"startColumn,omitempty"`
	EndLine     int `json:"endLine,omitempty"`
}

// buildErrorRule is the rule of what keeps a file from being built.
const buildErrorRule = "BuildError"

func sarifLog(files []File) sarif {
	run := sarifRun{
		Tool:    sarifTool{sarifDriver{Name: "img", Rules: []sarifRule{}}},
		Results: []sarifResult{}, ColumnKind: "unicodeCodePoints",
	}
	rules := map[string]int{}
	add := func(level string, w dockerfile.Warning, name string) {
		index, ok := rules[w.Rule]
		if !ok {
			index = len(run.Tool.Driver.Rules)
			rules[w.Rule] = index
			rule := sarifRule{ID: w.Rule, HelpURI: w.URL, Default: sarifDefault{level}}
			if w.Description != "" {
				rule.ShortDescription = &sarifText{w.Description}
			}
			run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, rule)
		}
		run.Results = append(run.Results, sarifResult{
			RuleID: w.Rule, RuleIndex: index, Level: level, Message: sarifText{w.Text},
			Locations: []sarifLocation{{sarifPhysical{sarifArtifact{uri(name)}, region(w.Pos)}}},
		})
	}
	for _, f := range files {
		for _, w := range f.Warnings {
			add("warning", w, f.Name)
		}
		if f.Err != nil {
			pos, text := failure(f)
			add("error", dockerfile.Warning{Pos: pos, Rule: buildErrorRule, Text: text, Description: "The Dockerfile cannot be built"}, f.Name)
		}
	}
	return sarif{Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run}}
}

// uri is a file's name as a URI reference, relative to where img was called if it is.
func uri(name string) string {
	u := url.URL{Path: filepath.ToSlash(cmp.Or(name, "Dockerfile"))}
	if filepath.IsAbs(name) {
		u.Scheme = "file"
	}
	return u.String()
}

func region(pos dag.Pos) *sarifRegion {
	if pos.IsZero() {
		return nil
	}
	r := &sarifRegion{StartLine: pos.Line, StartColumn: pos.Col}
	if pos.End > pos.Line {
		r.EndLine = pos.End
	}
	return r
}
