package main

import (
	"io"
	"slices"
	"testing"

	"github.com/alecthomas/kong"
)

// A command alone takes the same words as within the whole grammar.
func TestAlone(t *testing.T) {
	flags := func(n *kong.Node) (out []string) {
		for _, f := range n.Flags {
			out = append(out, f.String()+" "+f.Help)
		}
		return out
	}
	model := func(g *grammar, root any) *kong.Kong {
		k, err := newParser(g, root)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	var g grammar
	g.stdout, g.stderr, g.settings = io.Discard, io.Discard, &settings{}
	whole := model(&g, &g).Model
	for _, want := range whole.Children {
		for _, name := range append([]string{want.Name}, want.Aliases...) {
			root, globals := g.needed([]string{"-d", name, "x"})
			if name == "help" || name == "config" {
				if root != any(&g) {
					t.Errorf("%s does not see the other commands", name)
				}
				continue
			}
			if globals == &g.Globals {
				t.Errorf("%s needs the whole grammar", name)
			}
			got := model(&g, root).Model
			if len(got.Children) != 1 || !slices.Equal(flags(got.Children[0]), flags(want)) || !slices.Equal(flags(got.Node), flags(whole.Node)) {
				t.Errorf("%s alone has the options %v %v", name, flags(got.Children[0]), flags(got.Node))
			}
		}
	}
	for _, args := range [][]string{{}, {"frob"}, {"build", "--help"}, {"-h", "ls"}} {
		if root, _ := g.needed(args); root != any(&g) {
			t.Errorf("%v is read by a part of the grammar", args)
		}
	}
}

func BenchmarkGrammar(b *testing.B) {
	var g grammar
	g.stdout, g.stderr, g.settings = io.Discard, io.Discard, &settings{}
	for name, args := range map[string][]string{"whole": nil, "build": {"build"}, "ls": {"ls"}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				root, _ := g.needed(args)
				if _, err := newParser(&g, root); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
