package dag

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Structs become objects by their json tags, so that a new field of an op is in the stream by itself. Beside "omitempty", whose field may be
// left out and is then zero, the tag stream says
//
//	"-"         the stream has the field elsewhere
//	optional    the field is always written, and may be left out
//	scratch     a Ref, an ID or a Source, left out where it is the empty file system
//	json        bytes that are a JSON document
//
// All other fields must be there. Texts and bytes are strings; those that are no UTF-8 are {"base64":"…"}.

// A streamField is a field as the stream has it.
type streamField struct {
	index                         int
	name                          string
	omit, optional, scratch, json bool
}

func streamFields(t reflect.Type) (out []streamField) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		how := f.Tag.Get("stream")
		if name == "-" || how == "-" {
			continue
		}
		out = append(out, streamField{i, name, options == "omitempty", how == "optional", how == "scratch", how == "json"})
	}
	return out
}

var nowhere = Source{Input: Scratch}

// empty reports whether a field is left out.
func (f streamField) empty(v reflect.Value) bool {
	switch {
	case f.scratch && v.Kind() == reflect.Struct:
		return v.Interface() == nowhere
	case f.scratch:
		return v.Int() == int64(Scratch)
	case !f.omit:
		return false
	case v.Kind() == reflect.Slice || v.Kind() == reflect.Map:
		return v.Len() == 0
	}
	return v.IsZero()
}

// An encoder writes one line.
type encoder struct {
	b      bytes.Buffer
	inputs []ID
	err    error // the first
}

// object writes the fields of some structs as one object.
func (e *encoder) object(parts ...reflect.Value) {
	sep := byte('{')
	for _, v := range parts {
		for _, f := range streamFields(v.Type()) {
			if f.empty(v.Field(f.index)) {
				continue
			}
			e.b.WriteByte(sep)
			sep = ','
			e.text(f.name)
			e.b.WriteByte(':')
			if f.json {
				e.document(v.Field(f.index).Bytes())
				continue
			}
			e.value(v.Field(f.index))
		}
	}
	if sep == '{' {
		e.b.WriteByte(sep)
	}
	e.b.WriteByte('}')
}

func (e *encoder) value(v reflect.Value) {
	if r, ok := v.Interface().(Ref); ok {
		e.ref(r)
		return
	}
	switch v.Kind() {
	case reflect.String:
		e.text(v.String())
	case reflect.Bool:
		e.b.WriteString(strconv.FormatBool(v.Bool()))
	case reflect.Int, reflect.Int64:
		e.b.WriteString(strconv.FormatInt(v.Int(), 10))
	case reflect.Uint32:
		e.b.WriteString(strconv.FormatUint(v.Uint(), 10))
	case reflect.Pointer:
		e.value(v.Elem())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			e.text(string(v.Bytes()))
			return
		}
		e.b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				e.b.WriteByte(',')
			}
			e.value(v.Index(i))
		}
		e.b.WriteByte(']')
	case reflect.Map:
		e.texts(v.Interface().(map[string]string))
	case reflect.Struct:
		e.object(v)
	default:
		panic("no JSON for " + v.Type().String())
	}
}

// ref writes the id of the vertex that a Ref points to.
func (e *encoder) ref(r Ref) {
	switch {
	case r == Scratch:
		e.b.WriteString("-1")
	case r < 0 || int(r) >= len(e.inputs):
		e.fail(fmt.Errorf("the step has no input %d", r))
	default:
		e.b.WriteString(strconv.Itoa(int(e.inputs[r])))
	}
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

func (e *encoder) texts(m map[string]string) {
	e.b.WriteByte('{')
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			e.b.WriteByte(',')
		}
		if !utf8.ValidString(k) {
			e.fail(fmt.Errorf("the name %q is no UTF-8", k))
		}
		e.text(k)
		e.b.WriteByte(':')
		e.text(m[k])
	}
	e.b.WriteByte('}')
}

func (e *encoder) text(s string) {
	if !utf8.ValidString(s) {
		fmt.Fprintf(&e.b, `{"base64":%q}`, base64.StdEncoding.EncodeToString([]byte(s)))
		return
	}
	j := json.NewEncoder(&e.b)
	j.SetEscapeHTML(false)
	if err := j.Encode(s); err != nil {
		e.fail(err)
	}
	e.b.Truncate(e.b.Len() - 1) // the line's end
}

// document writes bytes that are JSON. What is inside stays as it is written.
func (e *encoder) document(raw []byte) {
	if err := json.Compact(&e.b, raw); err != nil {
		e.fail(err)
	}
}

// A fieldError is a mistake in a line.
type fieldError struct {
	path string
	// offset is where in the line; -1 if that is to be found by path.
	offset int
	err    error
	word   string
	known  []string
}

func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// at is an error of the field at a path.
func at(path, format string, args ...any) error {
	return &fieldError{path: path, offset: -1, err: fmt.Errorf(format, args...)}
}

// A decoder reads one line.
type decoder struct {
	src   []byte
	pos   int
	path  string
	depth int
	// spent is what all lines have taken of memory.
	spent *int
}

func (d *decoder) fail(offset int, format string, args ...any) error {
	return &fieldError{path: d.path, offset: offset, err: fmt.Errorf(format, args...)}
}

// spend notes what a value takes of memory: a byte of JSON can stand for hundreds.
func (d *decoder) spend(n int) error {
	if *d.spent += n; *d.spent > maxStreamMemory {
		return d.fail(d.pos, "the plan takes more than %d MiB of memory", maxStreamMemory>>20)
	}
	return nil
}

// within reads a part of the value.
func (d *decoder) within(part string, read func() error) error {
	outer := d.path
	d.path = strings.TrimPrefix(outer+part, ".")
	if d.depth++; d.depth > maxStreamDepth {
		return d.fail(d.pos, "more than %d values in each other", maxStreamDepth)
	}
	err := read()
	d.path, d.depth = outer, d.depth-1
	return err
}

// next skips white space and returns what follows, 0 at the end.
func (d *decoder) next() byte {
	for ; d.pos < len(d.src); d.pos++ {
		if c := d.src[d.pos]; c != ' ' && c != '\t' && c != '\r' {
			return c
		}
	}
	return 0
}

func (d *decoder) expect(c byte, what string) error {
	if got := d.next(); got != c {
		return d.unexpected(what)
	}
	d.pos++
	return nil
}

func (d *decoder) unexpected(want string) error {
	if d.next() == 0 && d.pos >= len(d.src) {
		return d.fail(d.pos, "the line ends where %s should be", want)
	}
	switch c := d.src[d.pos]; {
	case c == '{' || c == '[':
		return d.fail(d.pos, "want %s, not %s", want, map[byte]string{'{': "an object", '[': "an array"}[c])
	case c == '"':
		return d.fail(d.pos, "want %s, not a string", want)
	case c == 't' || c == 'f' || c == 'n' || c == '-' || c >= '0' && c <= '9':
		return d.fail(d.pos, "want %s, not %s", want, d.word())
	}
	r, _ := utf8.DecodeRune(d.src[d.pos:])
	return d.fail(d.pos, "want %s, not %q", want, r)
}

// word is the letters and digits that follow.
func (d *decoder) word() string {
	end := d.pos
	for end < len(d.src) && strings.IndexByte("+-.0123456789abcdefghijklmnopqrstuvwxyzE", d.src[end]) >= 0 {
		end++
	}
	return string(d.src[d.pos:end])
}

// end is after the line's value.
func (d *decoder) end() error {
	if d.next(); d.pos < len(d.src) {
		return d.fail(d.pos, "something follows the object; a line has one")
	}
	return nil
}

// members reads an object.
func (d *decoder) members(member func(name string, offset int) error) error {
	if err := d.expect('{', "an object"); err != nil {
		return err
	}
	seen := map[string]bool{}
	for first := true; d.next() != '}'; first = false {
		if !first {
			if err := d.expect(',', `"," or "}"`); err != nil {
				return err
			}
			d.next()
		}
		offset := d.pos
		name, err := d.str("a name in double quotes")
		if err != nil {
			return err
		}
		if seen[name] {
			return d.fail(offset, "%q is there twice", name)
		}
		seen[name] = true
		if err := d.spend(64 + len(name)); err != nil {
			return err
		}
		if err := d.expect(':', `":"`); err != nil {
			return err
		}
		d.next()
		if err := member(name, offset); err != nil {
			return err
		}
	}
	d.pos++
	return nil
}

// elements reads an array.
func (d *decoder) elements(element func() error) error {
	if err := d.expect('[', "an array"); err != nil {
		return err
	}
	for i := 0; d.next() != ']'; i++ {
		if i > 0 {
			if err := d.expect(',', `"," or "]"`); err != nil {
				return err
			}
			d.next()
		}
		if err := d.within("["+strconv.Itoa(i)+"]", element); err != nil {
			return err
		}
	}
	d.pos++
	return nil
}

// peek reads some members of the line's object and none of the others.
func (d *decoder) peek(want map[string]any) error {
	defer func() { d.pos, d.path, d.depth = 0, "", 0 }()
	err := d.members(func(name string, _ int) error {
		return d.within("."+name, func() error {
			if to, ok := want[name]; ok {
				return d.value(reflect.ValueOf(to).Elem())
			}
			return d.skip()
		})
	})
	if err != nil {
		return err
	}
	return d.end()
}

// line reads the line's object into structs that share it; step is what messages call it.
func (d *decoder) line(step string, parts ...reflect.Value) error {
	if err := d.object(step, parts...); err != nil {
		return err
	}
	return d.end()
}

// object reads an object into structs.
func (d *decoder) object(what string, parts ...reflect.Value) error {
	type slot struct {
		streamField
		v    reflect.Value
		seen bool
	}
	slots := map[string]*slot{}
	var names []string
	for _, v := range parts {
		for _, f := range streamFields(v.Type()) {
			slots[f.name] = &slot{streamField: f, v: v.Field(f.index)}
			names = append(names, f.name)
			if f.scratch {
				empty(v.Field(f.index))
			}
		}
	}
	start := d.pos
	err := d.members(func(name string, offset int) error {
		s := slots[name]
		if s == nil {
			return &fieldError{path: d.path, offset: offset, err: fmt.Errorf("%s has no field %q", what, name), word: name, known: names}
		}
		s.seen = true
		return d.within("."+name, func() error {
			if s.json {
				return d.document(s.v)
			}
			return d.value(s.v)
		})
	})
	if err != nil {
		return err
	}
	for _, n := range names {
		if s := slots[n]; !s.seen && !s.omit && !s.optional && !s.scratch {
			return d.fail(start, "%s needs %q", what, n)
		}
	}
	return nil
}

// empty makes a field the empty file system.
func empty(v reflect.Value) {
	if v.Kind() == reflect.Struct {
		v.Set(reflect.ValueOf(nowhere))
		return
	}
	v.SetInt(int64(Scratch))
}

// value reads a value of the kind that v has. A Ref is the id as it is written until the line's end.
func (d *decoder) value(v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		s, err := d.text()
		v.SetString(s)
		return err
	case reflect.Bool:
		return d.boolean(v)
	case reflect.Int, reflect.Int64, reflect.Uint32:
		return d.number(v)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(v.Elem())
	case reflect.Map:
		return d.mapping(v)
	case reflect.Struct:
		return d.object(fmt.Sprintf("a %s", strings.ToLower(v.Type().Name())), v)
	}
	if v.Type().Elem().Kind() == reflect.Uint8 {
		s, err := d.text()
		v.SetBytes([]byte(s))
		return err
	}
	return d.elements(func() error {
		if err := d.spend(2 * int(v.Type().Elem().Size())); err != nil {
			return err
		}
		v.Grow(1)
		v.SetLen(v.Len() + 1)
		e := v.Index(v.Len() - 1)
		e.SetZero()
		return d.value(e)
	})
}

func (d *decoder) boolean(v reflect.Value) error {
	d.next()
	w := d.word()
	if w != "true" && w != "false" {
		return d.unexpected("true or false")
	}
	d.pos += len(w)
	v.SetBool(w == "true")
	return nil
}

func (d *decoder) number(v reflect.Value) error {
	d.next()
	start, w := d.pos, d.word()
	n, err := strconv.ParseInt(w, 10, 64)
	if err != nil || w != strconv.FormatInt(n, 10) {
		if v.Kind() == reflect.Uint32 {
			return d.unexpected("a number that is not negative")
		}
		return d.unexpected("a whole number")
	}
	d.pos += len(w)
	if v.Kind() != reflect.Uint32 {
		v.SetInt(n)
		return nil
	}
	if n < 0 || n > math.MaxUint32 {
		return d.fail(start, "%d is not between 0 and %d", n, uint32(math.MaxUint32))
	}
	v.SetUint(uint64(n))
	return nil
}

// mapping reads an object whose names are free.
func (d *decoder) mapping(v reflect.Value) error {
	out := reflect.MakeMap(v.Type())
	err := d.members(func(name string, _ int) error {
		return d.within(fmt.Sprintf("[%q]", name), func() error {
			e := reflect.New(v.Type().Elem()).Elem()
			err := d.value(e)
			out.SetMapIndex(reflect.ValueOf(name), e)
			return err
		})
	})
	if out.Len() > 0 {
		v.Set(out)
	}
	return err
}

// text reads a string, or an object with one member, base64.
func (d *decoder) text() (string, error) {
	if d.next() != '{' {
		s, err := d.str("a string")
		if err != nil {
			return "", err
		}
		return s, d.spend(len(s))
	}
	var coded struct {
		Base64 string `json:"base64"`
	}
	start := d.pos
	if err := d.object("a text", reflect.ValueOf(&coded).Elem()); err != nil {
		return "", err
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(coded.Base64)
	if err != nil {
		return "", d.fail(start, "%w", err)
	}
	return string(raw), d.spend(len(raw))
}

// document reads any object as it is, less white space.
func (d *decoder) document(v reflect.Value) error {
	if d.next() != '{' {
		return d.unexpected("an object")
	}
	start := d.pos
	if err := d.skip(); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, d.src[start:d.pos]); err != nil {
		return d.fail(start, "%w", err)
	}
	v.SetBytes(b.Bytes())
	return d.spend(b.Len())
}

// skip reads any value.
func (d *decoder) skip() error {
	switch c := d.next(); {
	case c == '{':
		return d.members(func(name string, _ int) error { return d.within("."+name, d.skip) })
	case c == '[':
		return d.elements(d.skip)
	case c == '"':
		_, err := d.str("a string")
		return err
	}
	if w := d.word(); w != "" && json.Valid([]byte(w)) {
		d.pos += len(w)
		return nil
	}
	return d.unexpected("a value")
}

// str reads a string.
func (d *decoder) str(want string) (string, error) {
	if d.next() != '"' {
		return "", d.unexpected(want)
	}
	start := d.pos
	var b strings.Builder
	for d.pos++; d.pos < len(d.src); {
		switch c := d.src[d.pos]; {
		case c == '"':
			d.pos++
			return b.String(), nil
		case c == '\\':
			r, err := d.escape()
			if err != nil {
				return "", err
			}
			b.WriteRune(r)
		case c < ' ':
			return "", d.fail(d.pos, "the character %q in a string is written \\u%04x", c, c)
		default:
			r, n := utf8.DecodeRune(d.src[d.pos:])
			if r == utf8.RuneError && n <= 1 {
				return "", d.fail(d.pos, `the byte %#02x is no UTF-8; bytes are written {"base64":"…"}`, c)
			}
			b.WriteRune(r)
			d.pos += n
		}
	}
	return "", d.fail(start, "the string does not end")
}

// escape reads what begins with a backslash.
func (d *decoder) escape() (rune, error) {
	const short, meant = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	start := d.pos
	if d.pos+1 < len(d.src) {
		if i := strings.IndexByte(short, d.src[d.pos+1]); i >= 0 {
			d.pos += 2
			return rune(meant[i]), nil
		}
	}
	r, ok := d.unit()
	if !ok {
		return 0, d.fail(start, "unknown escape")
	}
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	low, ok := d.unit()
	if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
		return 0, d.fail(start, "half of a surrogate pair")
	}
	return r, nil
}

// unit reads \uXXXX.
func (d *decoder) unit() (rune, bool) {
	if d.pos+6 > len(d.src) || string(d.src[d.pos:d.pos+2]) != `\u` {
		return 0, false
	}
	n, err := strconv.ParseUint(string(d.src[d.pos+2:d.pos+6]), 16, 16)
	d.pos += 6
	return rune(n), err == nil
}

// locate finds where in a line the value at a path begins; of a path that is not there, what is there of it.
func locate(line []byte, path string) int {
	spent := 0
	d := decoder{src: line, spent: &spent}
	found := 0
	for path != "" {
		name, list := "", strings.HasPrefix(path, "[")
		if list {
			name, path, _ = strings.Cut(path[1:], "]")
			path = strings.TrimPrefix(path, ".")
			if text, err := strconv.Unquote(name); err == nil {
				name = text
			}
		} else {
			cut := strings.IndexAny(path+".", ".[")
			name, path = path[:cut], strings.TrimPrefix(path[cut:], ".")
		}
		if !d.enter(name, list) {
			return found
		}
		found = d.pos
	}
	return found
}

// errThere ends a search.
var errThere = fmt.Errorf("found")

// enter moves to a member of an object, or an element of an array.
func (d *decoder) enter(name string, list bool) bool {
	i := -1
	look := func(this string) error {
		if this == name {
			return errThere
		}
		return d.skip()
	}
	if list && d.next() == '[' {
		return d.elements(func() error { i++; return look(strconv.Itoa(i)) }) == errThere
	}
	return d.members(func(this string, _ int) error { return look(this) }) == errThere
}
