package dockerfile

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"img/registry/image"
)

// Fixable are the rules whose findings Fix can repair: those of which one right form is known, and which makes the same image.
//
// MaintainerDeprecated is none: a label in its place is another image. Neither is JSONArgsRecommended: without a shell, variables and
// signals mean something else.
var Fixable = []string{"ConsistentInstructionCasing", "ExposeInvalidFormat", "ExposeProtoCasing", "FromAsCasing", "LegacyKeyValueFormat",
	"NoEmptyContinuation", "RedundantTargetPlatform", "StageNameCasing", "WorkdirRelativePath"}

// A Fixed is what Fix made of a file.
type Fixed struct {
	// Source is the text; the bytes of Fix's argument that no fix needs are in it as they were.
	Source []byte
	// Fixes are the findings that were repaired. Positions are those of the time when each was found.
	Fixes []Warning
}

// Fix repairs what Check finds and Fixable lists. The text it returns lowers to the same graph and configurations as before, for all
// stages: a repair of which that is not so is left out. Bases need not be known. A file that cannot be lowered is an error.
func Fix(name string, src []byte, o Options, base func(BaseRef) (*image.Image, error)) (*Fixed, error) {
	o.Target, o.AllStages = "", true
	x := &fixer{name: name, o: o, base: base, out: &Fixed{Source: src}}
	found, meaning, err := x.look(src)
	if err != nil {
		return nil, err
	}
	x.meaning = meaning
	// A repair may show what it hid: FROM in capitals wants AS to be so, too. No rule leads back to one before it.
	for range len(Fixable) {
		n := len(x.out.Fixes)
		found = x.round(found)
		if len(x.out.Fixes) == n {
			break
		}
	}
	return x.out, nil
}

type fixer struct {
	name    string
	o       Options
	base    func(BaseRef) (*image.Image, error)
	meaning string
	tries   int
	out     *Fixed
}

// A finding is a warning with what would repair it.
type finding struct {
	Warning
	edits []edit
}

// An edit replaces the bytes of a file from one offset to another.
type edit struct {
	from, to int
	with     string
}

// look returns what can be repaired in a text, and what the text means.
func (x *fixer) look(src []byte) ([]finding, string, error) {
	f, err := Parse(x.name, src)
	if err != nil {
		return nil, "", err
	}
	l, err := f.checked(x.o, x.base)
	if err != nil {
		return nil, "", err
	}
	var out []finding
	for _, w := range l.sortedWarnings() {
		if edits := f.repair(w, l.absolute); len(edits) > 0 {
			out = append(out, finding{w, edits})
		}
	}
	meaning, err := l.meaning()
	return out, meaning, err
}

// round applies all repairs that are found, or those that keep the meaning, and returns what is found then.
func (x *fixer) round(found []finding) []finding {
	if next, ok := x.take(found); ok {
		return next
	}
	next, _ := x.take(x.harmless(found))
	return next
}

// maxTries bounds how often a file is lowered to find the repairs that would change its meaning. What is not tried is not repaired.
const maxTries = 64

// harmless are the repairs that keep the meaning, found by halves: mostly few do not.
func (x *fixer) harmless(found []finding) []finding {
	if len(found) == 0 || x.tries >= maxTries {
		return nil
	}
	if _, _, _, ok := x.try(found); ok {
		return found
	}
	if len(found) == 1 {
		return nil
	}
	half := len(found) / 2
	return append(slices.Clip(x.harmless(found[:half])), x.harmless(found[half:])...)
}

// take applies repairs if the text then means the same, and returns what is found in it.
func (x *fixer) take(found []finding) ([]finding, bool) {
	src, done, next, ok := x.try(found)
	if !ok {
		return nil, false
	}
	x.out.Source = src
	for _, f := range done {
		x.out.Fixes = append(x.out.Fixes, f.Warning)
	}
	return next, true
}

func (x *fixer) try(found []finding) (src []byte, done, next []finding, ok bool) {
	x.tries++
	src, done = apply(x.out.Source, found)
	if len(done) == 0 || string(src) == string(x.out.Source) {
		return nil, nil, nil, false
	}
	next, meaning, err := x.look(src)
	return src, done, next, err == nil && meaning == x.meaning
}

// apply makes the edits of findings, and returns those that were possible: of two rules about one place the second waits.
func apply(src []byte, found []finding) (out []byte, done []finding) {
	var edits []edit
	for _, f := range found {
		if slices.ContainsFunc(f.edits, func(e edit) bool { return slices.ContainsFunc(edits, e.disturbs) }) {
			continue
		}
		for _, e := range f.edits {
			if !slices.Contains(edits, e) {
				edits = append(edits, e)
			}
		}
		done = append(done, f)
	}
	slices.SortStableFunc(edits, func(x, y edit) int { return x.from - y.from })
	at := 0
	for _, e := range edits {
		out = append(append(out, src[at:e.from]...), e.with...)
		at = e.to
	}
	return append(out, src[at:]...), done
}

// disturbs reports whether two edits are about one place, and differ.
func (e edit) disturbs(other edit) bool {
	return e != other && e.from <= other.to && other.from <= e.to
}

// meaning is all that a lowering says about what is built: not where things stand in the file, nor how they are shown.
func (l *lowering) meaning() (string, error) {
	var w strings.Builder
	out := json.NewEncoder(&w)
	for _, v := range l.graph.Vertices {
		if err := out.Encode([]any{v.Op.Kind(), v.Op, v.Inputs, v.Stage, v.Platform, v.Skip, v.NoCache}); err != nil {
			return "", err
		}
	}
	for _, s := range l.stages {
		var layers []int
		for at := s.layers; at != nil; at = at.below {
			layers = append(layers, int(at.of), int(at.state))
		}
		if err := out.Encode([]any{s.name, s.source.DocComment, s.files, layers, s.meta, s.config, s.past.entries(), formatPlatform(s.platform)}); err != nil {
			return "", err
		}
	}
	return w.String(), nil
}

// repair returns the edits that repair a finding, none if it cannot be.
func (f *File) repair(w Warning, absolute map[int]string) []edit {
	n := f.node(w.Pos.Line)
	if n == nil {
		return nil
	}
	r := repairing{f.textAt(n.StartLine, n.EndLine)}
	switch w.Rule {
	case "ConsistentInstructionCasing":
		return r.keyword(strings.HasSuffix(w.Text, "(lowercase)"))
	case "FromAsCasing":
		return r.as()
	case "StageNameCasing":
		return r.stageName()
	case "LegacyKeyValueFormat":
		return r.keyValue()
	case "NoEmptyContinuation":
		return r.emptyLines()
	case "ExposeProtoCasing":
		return r.words(func(word string) string {
			port, proto, _ := strings.Cut(word, "/")
			return strings.TrimSuffix(port+"/"+strings.ToLower(proto), "/")
		})
	case "ExposeInvalidFormat":
		return r.words(func(word string) string { return word[strings.LastIndexByte(word, ':')+1:] })
	case "RedundantTargetPlatform":
		return r.platform()
	case "WorkdirRelativePath":
		return r.workdir(absolute[n.StartLine])
	}
	return nil
}

// repairing makes edits of one instruction.
type repairing struct{ t *text }

// offset is where an offset of the joined text stands in the file, in bytes; line is its line.
func (r repairing) offset(at int) (offset, line int) {
	t := r.t
	i, _ := slices.BinarySearchFunc(t.pieces, at, func(p piece, at int) int {
		if p.at <= at {
			return -1
		}
		return 1
	})
	p := t.pieces[max(i-1, 0)]
	for _, l := range t.f.lines[:p.line-1] {
		offset += len(l) + 1
	}
	return offset + p.from + at - p.at, p.line
}

// replace replaces a span. One that goes over several lines stays: what is between them, comments too, would be lost.
func (r repairing) replace(s span, with string) []edit {
	if s.from == s.to { // after what is before it
		at, _ := r.offset(s.from - 1)
		return []edit{{at + 1, at + 1, with}}
	}
	from, line := r.offset(s.from)
	last, end := r.offset(s.to - 1)
	if line != end || r.t.of(s) == with {
		return nil
	}
	return []edit{{from, last + 1, with}}
}

func (r repairing) keyword(lower bool) []edit {
	w := r.t.words()[0]
	if lower {
		return r.replace(w, strings.ToLower(r.t.of(w)))
	}
	return r.replace(w, strings.ToUpper(r.t.of(w)))
}

// as gives AS the case of FROM.
func (r repairing) as() []edit {
	_, args := r.t.arguments()
	if len(args) != 3 {
		return nil
	}
	from := r.t.of(r.t.words()[0])
	if from == strings.ToLower(from) {
		return r.replace(args[1], strings.ToLower(r.t.of(args[1])))
	}
	return r.replace(args[1], strings.ToUpper(r.t.of(args[1])))
}

func (r repairing) stageName() []edit {
	_, args := r.t.arguments()
	if len(args) != 3 {
		return nil
	}
	return r.replace(args[2], strings.ToLower(r.t.of(args[2])))
}

// keyValue makes K=V of "K V". Blanks of the value are quoted, or escaped if it has quotes of its own.
func (r repairing) keyValue() []edit {
	_, args := r.t.arguments()
	if len(args) < 2 {
		return nil
	}
	// The value begins after the first blank, whatever the quotes are.
	value := span{args[1].from, args[len(args)-1].to}
	edits := r.replace(span{args[0].to, value.from}, "=")
	text := r.t.of(value)
	switch {
	case edits == nil:
		return nil
	case !strings.ContainsAny(text, " \t"):
		return edits
	case !strings.ContainsAny(text, `"'`+string(r.t.f.escape)):
		edits[0].with = `="`
		return append(edits, r.replace(span{value.to, value.to}, `"`)...)
	}
	return append(edits, r.escapeBlanks(value)...)
}

func (r repairing) escapeBlanks(value span) (edits []edit) {
	quote := byte(0)
	for i := value.from; i < value.to; i++ {
		switch c := r.t.joined[i]; {
		case rune(c) == r.t.f.escape && quote != '\'':
			i++
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && (c == ' ' || c == '\t'):
			edits = append(edits, r.replace(span{i, i}, string(r.t.f.escape))...)
		}
	}
	return edits
}

// emptyLines removes the empty lines between continued ones. Those of heredocs are after the last.
func (r repairing) emptyLines() (edits []edit) {
	offset := 0
	for i, line := range r.t.f.lines[:r.t.end] {
		if i+1 > r.t.line && strings.TrimSpace(line) == "" {
			edits = append(edits, edit{offset, offset + len(line) + 1, ""})
		}
		offset += len(line) + 1
	}
	return edits
}

// words changes the words of an instruction that have no variables.
func (r repairing) words(change func(string) string) (edits []edit) {
	_, args := r.t.arguments()
	for _, a := range args {
		if word := r.t.of(a); !strings.Contains(word, "$") {
			edits = append(edits, r.replace(a, change(word))...)
		}
	}
	return edits
}

// platform removes --platform, and the blanks after it.
func (r repairing) platform() []edit {
	flag, ok := r.t.flag("--platform")
	if !ok {
		return nil
	}
	to := flag.to
	for _, w := range r.t.words() {
		if w.from >= flag.to {
			to = w.from
			break
		}
	}
	if edits := r.replace(span{flag.from, to}, ""); edits != nil {
		return edits
	}
	return r.replace(flag, "")
}

func (r repairing) workdir(dir string) []edit {
	_, args := r.t.arguments()
	if len(args) != 1 || !path.IsAbs(dir) || strings.ContainsAny(r.t.of(args[0])+dir, "$\"' \t"+string(r.t.f.escape)) {
		return nil
	}
	return r.replace(args[0], dir)
}
