package cache

import (
	"strings"
	"testing"
)

func TestLine(t *testing.T) {
	type word string
	type words []word
	mode := uint32(0o755)
	var none *uint32
	for _, c := range []struct {
		want   string
		values []any
	}{
		{`x`, nil},
		{`x ""`, []any{""}},
		{`x "a" "b"`, []any{"a", "b"}},
		{`x "a" "b"`, []any{[]string{"a", "b"}}},
		{`x ["a"] "b"`, []any{[]string{"a"}, "b"}},
		{`x "a" ["b"]`, []any{"a", []string{"b"}}},
		{`x [] []`, []any{[]string{}, []string(nil)}},
		{`x`, []any{[]string{}}},
		{`x "a\nx \"b\""`, []any{"a\nx \"b\""}},
		{`x "\xff" "�"`, []any{"\xff", "\ufffd"}},
		{`x 1 -1 true "1"`, []any{1, int64(-1), true, "1"}},
		{`x 493 -`, []any{&mode, none}},
		{`x -`, []any{nil}},
		{`x "a" "b"`, []any{words{"a", "b"}}},
		{`x ["a" 1] [["b"] []]`, []any{[]any{"a", 1}, [][]string{{"b"}, {}}}},
		{`x sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855`, []any{[]byte{}}},
		{`x sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881 1`, []any{[1]byte{'x'}, 1}},
	} {
		var h Hash
		h.Line("x", c.values...)
		if got := h.Text(); got != c.want+"\n" {
			t.Errorf("Line(x, %#v) = %q, want %q", c.values, got, c.want)
		}
	}
}

func TestLineLabel(t *testing.T) {
	var h Hash
	h.Line("a \"b\"\nc", "d")
	if want := `"a \"b\"\nc" "d"` + "\n"; h.Text() != want {
		t.Errorf("got %q, want %q", h.Text(), want)
	}
}

func TestLineRefusesStructs(t *testing.T) {
	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "struct") {
			t.Errorf("recovered %v", r)
		}
	}()
	new(Hash).Line("x", struct{ A string }{"a"})
}

func TestHashKey(t *testing.T) {
	var h Hash
	if got := h.Key(); got != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("key of nothing is %s", got)
	}
	h.Line("a", 1)
	k := h.Key()
	if h.Line("b"); h.Key() == k || len(k) != 64 {
		t.Errorf("key %s stays after another line", k)
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct{ old, new, was, now string }{
		{"", "", "", ""},
		{"a\nb\n", "a\nb\n", "", ""},
		{"a\nb\nc\n", "a\nB\nC\n", "b", "B"},
		{"a\n", "a\nb\n", "", "b"},
		{"a\nb\n", "a\n", "b", ""},
		{"", "a\n", "", "a"},
	} {
		if was, now := Explain(c.old, c.new); was != c.was || now != c.now {
			t.Errorf("Explain(%q, %q) = %q, %q", c.old, c.new, was, now)
		}
	}
}
