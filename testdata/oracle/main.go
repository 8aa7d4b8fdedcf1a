// Command oracle asks BuildKit's own lowering (dockerfile2llb) what a Dockerfile means, asks img's the same, and tells where
// they differ. The Dockerfiles are every golden case of testdata/dag/dockerfile, those in BuildKit's own tests (read
// where the go command keeps modules), and generated ones.
//
//	make oracle [ORACLE=files to generate]
//	go run . [-n N] [-seed S] [-v] [FILE …]     in this directory; a FILE is a Dockerfile to compare instead
//
// Compared are: whether there is an error; the image's configuration, platform and history; bases; arguments, environment,
// directory, user, network, security, devices and mounts of each RUN; sources, destination, owner, mode and exclusions of each
// COPY and ADD; bodies of heredocs; directories of WORKDIR; that COPY --link merges; BuildKit's own warnings.
// What differs by intention is the table in known.go, a regular expression and a reason each. A difference that is not
// in it, or a row of it that no Dockerfile of a whole run needs, ends with exit code 1.
//
// It cannot see:
//   - what both take from the same place: img parses with BuildKit's parser, so what that does wrong, both do;
//   - the words and places of errors, which are our own (testdata/errors), and the second error of a file; a generated
//     file loses the instruction at which it fails, and is asked again;
//   - the order of steps, on which step's files one is based, and how often an equal one stands there: lines are compared
//     as sets, and an earlier stage is only "stage";
//   - what steps do to files, times, layers, keys and caches (testdata/language, cmd/img's scripts);
//   - what BuildKit decides outside its lowering: syntax front ends, named contexts, ignore files, several platforms in one
//     image, outputs. Golden cases with such options are left out, and counted.
//
// It is a module of its own, so that BuildKit's client, gRPC and all their like are not in img's go.mod.
package main

import (
	"flag"
	"fmt"
	"math/rand"
	"os"
)

func main() {
	n := flag.Int("n", 5000, "how many Dockerfiles to generate")
	seed := flag.Int64("seed", 1, "of the generator")
	verbose := flag.Bool("v", false, "also tell which row of the table explains which Dockerfile")
	flag.Parse()
	fatal(documented("../../docs/dockerfile.md"))
	r := newReport(*verbose)
	if flag.NArg() > 0 {
		fatal(r.files(flag.Args()))
	} else {
		fatal(r.all(*n, *seed))
	}
	if !r.summary(flag.NArg() == 0) {
		os.Exit(1)
	}
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func (r *report) files(names []string) error {
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		r.compare(testcase{name: name, source: string(text)})
	}
	return nil
}

func (r *report) all(n int, seed int64) error {
	golden, left, err := goldenCases("../dag/dockerfile")
	if err != nil {
		return err
	}
	theirs, err := buildkitCases()
	if err != nil {
		return err
	}
	for _, c := range append(golden, theirs...) {
		r.compare(c)
	}
	fmt.Printf("%d golden cases (%d left out), %d Dockerfiles of BuildKit's tests\n", len(golden), left, len(theirs))
	random := rand.New(rand.NewSource(seed))
	for i := range n {
		c := generate(random)
		c.name = fmt.Sprintf("generated %d of seed %d", i, seed)
		r.mend(c)
	}
	return nil
}
