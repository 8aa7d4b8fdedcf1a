package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Record says that a key produced an output. On disk it is one small file with its own checksum; a bad, cut or
// newer record is a miss, never an error.
type Record struct {
	Key    Key
	Output Output
	// Text is the key's text, so that a miss can be explained by the first line that differs.
	Text string
	// Step identifies the step across builds (name and stage), for finding the nearest earlier record.
	Step string
	// Cost is how long the step took.
	Cost time.Duration
	// Tier is the sandbox tier the step ran under; 0 for steps without a sandbox.
	Tier int
	// Boot is the boot id of the machine run that made the record.
	Boot string
	Made time.Time
	// Warnings are what the step did that people might not expect; a result from the cache says them again.
	Warnings []Warning
}

// A Warning is something surprising that a step does without failing: a rule's name, and a sentence about this step.
type Warning struct {
	Rule, Text string
}

// A record's file is
//
//	img record 1
//	key 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//	output "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
//	step "build: RUN make"
//	cost 1500000000
//	tier 1
//	boot "5a9f6a2e-8f0e-4b0f-9a53-0d8f2f0c6c11"
//	made 2026-01-02T15:04:05.123456789Z
//	warn "CopyPatternWithoutMatch" "nothing matches *.txt"
//
//	run "sh" "-c" "make"
//	env "PATH=/bin"
//	sum fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9
//
// Cost is in nanoseconds. There is a line for each warning, often none. The key's text follows the empty line as it is. The sum is the SHA-256 of all before its
// line, which has a fixed length, so that any text can stand before it.
const (
	magic   = "img record "
	version = "1"
	sumLine = len("sum \n") + 2*sha256.Size
)

var (
	errDamaged = errors.New("damaged record")
	errNewer   = errors.New("record of another version")
)

func encode(r Record) []byte {
	b := new(bytes.Buffer)
	fmt.Fprintf(b, "%s%s\n", magic, version)
	fmt.Fprintf(b, "key %s\noutput %q\nstep %q\n", r.Key, string(r.Output), r.Step)
	fmt.Fprintf(b, "cost %d\ntier %d\nboot %q\n", int64(r.Cost), r.Tier, r.Boot)
	fmt.Fprintf(b, "made %s\n", r.Made.UTC().Format(time.RFC3339Nano))
	for _, w := range r.Warnings {
		fmt.Fprintf(b, "warn %q %q\n", w.Rule, w.Text)
	}
	fmt.Fprintf(b, "\n%s", r.Text)
	fmt.Fprintf(b, "sum %x\n", sha256.Sum256(b.Bytes()))
	return b.Bytes()
}

// decode returns errDamaged or errNewer for what encode did not write.
func decode(data []byte) (Record, error) {
	first, _, _ := bytes.Cut(data, []byte("\n"))
	if v, ok := strings.CutPrefix(string(first), magic); ok && v != version && isNumber(v) {
		return Record{}, errNewer
	}
	if len(data) < sumLine {
		return Record{}, errDamaged
	}
	body, sum := data[:len(data)-sumLine], data[len(data)-sumLine:]
	if want := sha256.Sum256(body); string(sum) != "sum "+hex.EncodeToString(want[:])+"\n" {
		return Record{}, errDamaged
	}
	head, text, ok := strings.Cut(string(body), "\n\n")
	if !ok {
		return Record{}, errDamaged
	}
	return decodeHead(strings.Split(head, "\n"), text)
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// decodeHead reads the lines before the text. Their order is part of the format.
func decodeHead(lines []string, text string) (Record, error) {
	p := parser{lines: lines}
	p.expect(magic + version)
	r := Record{
		Key:    Key(p.field("key")),
		Output: Output(p.quoted("output")),
		Text:   text,
		Step:   p.quoted("step"),
		Cost:   time.Duration(p.integer("cost")),
		Tier:   int(p.integer("tier")),
		Boot:   p.quoted("boot"),
		Made:   p.time("made"),
	}
	for len(p.lines) > 0 {
		r.Warnings = append(r.Warnings, p.warning())
	}
	if p.bad || !r.Key.valid() {
		return Record{}, errDamaged
	}
	return r, nil
}

// A parser takes lines from the front; bad stays set after the first that is not as expected.
type parser struct {
	lines []string
	bad   bool
}

func (p *parser) next() string {
	if len(p.lines) == 0 {
		p.bad = true
		return ""
	}
	line := p.lines[0]
	p.lines = p.lines[1:]
	return line
}

func (p *parser) expect(line string) { p.bad = p.next() != line || p.bad }

func (p *parser) field(name string) string {
	v, ok := strings.CutPrefix(p.next(), name+" ")
	p.bad = p.bad || !ok
	return v
}

func (p *parser) quoted(name string) string {
	v, err := strconv.Unquote(p.field(name))
	p.bad = p.bad || err != nil
	return v
}

func (p *parser) warning() Warning {
	rest := p.field("warn")
	rule, err := strconv.QuotedPrefix(rest)
	text, ok := strings.CutPrefix(rest[len(rule):], " ")
	w, errRule, errText := Warning{}, err, error(nil)
	if err == nil {
		w.Rule, errRule = strconv.Unquote(rule)
	}
	w.Text, errText = strconv.Unquote(text)
	p.bad = p.bad || !ok || errRule != nil || errText != nil
	return w
}

func (p *parser) integer(name string) int64 {
	v, err := strconv.ParseInt(p.field(name), 10, 64)
	p.bad = p.bad || err != nil
	return v
}

func (p *parser) time(name string) time.Time {
	v, err := time.Parse(time.RFC3339Nano, p.field(name))
	p.bad = p.bad || err != nil
	return v
}
