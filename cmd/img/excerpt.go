package main

import (
	"fmt"
	"strings"

	"github.com/mattn/go-runewidth"

	"img/cmd/img/progress"
	"img/dag"
)

// Limits of an excerpt: lines around the guilty ones, how many of these are shown, and how wide a line may be before only the part
// around the column is.
const (
	excerptAround = 2
	excerptLines  = 20
	excerptWidth  = 120
	excerptRule   = "--------------------\n"
)

// excerpt shows the lines of a position with two lines around them; "" when the text is not known.
//
//	Dockerfile:2
//	--------------------
//	   1 |     FROM busybox
//	   2 | >>> RUN --nework=none true
//	     |         ^
//	--------------------
func excerpt(pos dag.Pos, text []byte) string {
	lines := strings.Split(strings.TrimRight(strings.TrimPrefix(string(text), "\ufeff"), "\n"), "\n")
	if len(text) == 0 || pos.Line < 1 || pos.Line > len(lines) {
		return ""
	}
	end := min(max(pos.End, pos.Line), len(lines))
	first, last := max(pos.Line-excerptAround, 1), min(end+excerptAround, len(lines))
	width := max(4, len(fmt.Sprint(last)))
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n%s", progress.Clean(pos.File), pos.Line, excerptRule)
	for n := first; n <= last; n++ {
		if left := end - n; n >= pos.Line+excerptLines && left > 0 {
			fmt.Fprintf(&b, "%*s | >>> ... %d more lines\n", width, "", left)
			n = end
		}
		mark, col := "   ", 0
		if n >= pos.Line && n <= end {
			mark = ">>>"
		}
		if n == pos.Line {
			col = pos.Col
		}
		line, caret := window(strings.TrimRight(lines[n-1], "\r"), col)
		b.WriteString(strings.TrimRight(fmt.Sprintf("%*d | %s %s", width, n, mark, line), " ") + "\n")
		if col > 0 {
			fmt.Fprintf(&b, "%*s |     %s^\n", width, "", caret)
		}
	}
	return b.String() + excerptRule
}

// window is a line as it is shown, and the white space that puts a caret below a column (counted in characters from 1): tabs stay tabs,
// so that they are as wide as above. Of a long line it is the part around the column.
func window(line string, col int) (shown, caret string) {
	before, after := cutAt(line, max(col-1, 0))
	before, after = progress.Clean(before), progress.Clean(after)
	if runewidth.StringWidth(before)+runewidth.StringWidth(after) > excerptWidth {
		const left = excerptWidth / 2
		if runewidth.StringWidth(before) > left {
			before = runewidth.TruncateLeft(before, runewidth.StringWidth(before)-left, "…")
		}
		after = runewidth.Truncate(after, excerptWidth-runewidth.StringWidth(before), "…")
	}
	return before + after, indent(before)
}

// cutAt cuts a text after some characters; a byte that is no UTF-8 is one.
func cutAt(s string, n int) (before, after string) {
	for i := range s {
		if n == 0 {
			return s[:i], s[i:]
		}
		n--
	}
	return s, ""
}

// indent is white space as wide as a text.
func indent(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\t' {
			b.WriteByte('\t')
			continue
		}
		b.WriteString(strings.Repeat(" ", runewidth.RuneWidth(r)))
	}
	return b.String()
}
