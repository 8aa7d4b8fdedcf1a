package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"img/dag/dockerfile"
)

// A report is what came of all comparisons.
type report struct {
	verbose bool
	// compared counts comparisons; failed, those in which both sides had an error; panicked, those in which BuildKit did.
	compared, failed, panicked int
	// known counts files by row of the table, unknown those with a difference that has none.
	known   map[string]int
	unknown int
}

func newReport(verbose bool) *report {
	return &report{verbose: verbose, known: map[string]int{}}
}

// compare returns our side's error if both sides have one.
func (r *report) compare(c testcase) error {
	if c.platform == "" {
		c.platform = buildPlatform
	}
	theirs := within(c, "BuildKit", buildkit)
	ours := within(c, "img", img)
	r.compared++
	if errors.Is(theirs.err, errPanic) {
		r.panicked++
		return nil
	}
	r.judge(c, difference(theirs, ours))
	if theirs.err == nil || ours.err == nil {
		return nil
	}
	r.failed++
	return ours.err
}

// mend compares a generated file, and again without the instruction at which both sides fail.
func (r *report) mend(c testcase) {
	for {
		err := r.compare(c)
		var at *dockerfile.Error
		if !errors.As(err, &at) || !c.drop(at.Pos.Line) {
			return
		}
	}
}

// judge prints the lines that no row of the table explains.
func (r *report) judge(c testcase, lines []string) {
	rows := map[string]bool{}
	open := slices.DeleteFunc(lines, func(line string) bool {
		row := explain(c, line)
		rows[row] = true
		return row != ""
	})
	for row := range rows {
		if row != "" {
			r.known[row]++
			if r.verbose {
				fmt.Printf("%s: known: %s\n", c.name, row)
			}
		}
	}
	if len(open) > 0 {
		r.unknown++
		fmt.Printf("=== %s\n%s\n%s\n", c.name, c, strings.Join(open, "\n"))
	}
}

// summary prints the end and returns whether all is well. After a whole run each row of the table must have had its use.
func (r *report) summary(whole bool) bool {
	ok := r.unknown == 0
	for _, k := range known {
		n := r.known[k.name]
		if n > 0 {
			fmt.Printf("known: %s: %d\n", k.name, n)
		} else if whole {
			ok = false
			fmt.Printf("=== known.go: no Dockerfile shows any more: %s\n", k.name)
		}
	}
	fmt.Printf("%d comparisons: %d with an error of both, %d in which BuildKit panicked, %d with unknown differences\n",
		r.compared, r.failed, r.panicked, r.unknown)
	return ok
}

var errPanic = errors.New("panic")

// within makes a side's panic an error. What does not end in time ends the program: goroutines cannot be stopped.
func within(c testcase, side string, lower func(testcase) (outcome, error)) outcome {
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if x := recover(); x != nil {
				o.err = fmt.Errorf("%w: %v", errPanic, x)
			}
			done <- o
		}()
		o, o.err = lower(c)
	}()
	select {
	case o := <-done:
		return o
	case <-time.After(30 * time.Second):
		fmt.Printf("=== %s\n%s\n%s hangs\n", c.name, c, side)
		os.Exit(1)
		panic("unreachable")
	}
}
