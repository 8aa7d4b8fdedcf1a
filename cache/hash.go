package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// A Hash collects a key's text: one labelled line per thing that can change the result, every string quoted
// (strconv.Quote), so that no two different lists of values give one text. The text is kept.
//
//	run "sh" "-c" "make"
//	env "PATH=/bin" "A=1"
//	script sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//	mode -
//	chown ["1" "2"] 7 true
//
// The zero value is an empty text.
type Hash struct{ text []byte }

// Line adds a line. Values are strings, integers, bools, byte slices (as their SHA-256), pointers to these (nil is
// written as -), and slices of these; named types count as what they are made of. One slice alone is written without
// its brackets. Any other type is a mistake of the programmer, and panics.
func (h *Hash) Line(label string, values ...any) {
	if strings.ContainsAny(label, " \"\n") {
		label = strconv.Quote(label)
	}
	h.text = append(h.text, label...)
	if len(values) == 1 {
		h.text = appendAlone(h.text, values[0])
	} else {
		for _, v := range values {
			h.text = appendValue(append(h.text, ' '), reflect.ValueOf(v))
		}
	}
	h.text = append(h.text, '\n')
}

// appendAlone writes the only value of a line.
func appendAlone(b []byte, v any) []byte {
	r := reflect.ValueOf(v)
	if !isList(r) {
		return appendValue(append(b, ' '), r)
	}
	for i := range r.Len() {
		b = appendValue(append(b, ' '), r.Index(i))
	}
	return b
}

func isList(v reflect.Value) bool {
	return (v.Kind() == reflect.Slice || v.Kind() == reflect.Array) && v.Type().Elem().Kind() != reflect.Uint8
}

func appendValue(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.String:
		return strconv.AppendQuote(b, v.String())
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(b, v.Uint(), 10)
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return append(b, '-')
		}
		return appendValue(b, v.Elem())
	case reflect.Invalid: // a bare nil
		return append(b, '-')
	case reflect.Slice, reflect.Array:
		return appendList(b, v)
	}
	panic(fmt.Sprintf("cache: no way to write a %s into a key", v.Type()))
}

// appendList writes bytes as their digest, other lists in brackets.
func appendList(b []byte, v reflect.Value) []byte {
	if !isList(v) {
		return fmt.Appendf(b, "sha256:%x", sha256.Sum256(bytesOf(v)))
	}
	b = append(b, '[')
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendValue(b, v.Index(i))
	}
	return append(b, ']')
}

// bytesOf works for arrays as well, which Value.Bytes demands to be addressable.
func bytesOf(v reflect.Value) []byte {
	if v.Kind() == reflect.Slice {
		return v.Bytes()
	}
	data := make([]byte, v.Len())
	reflect.Copy(reflect.ValueOf(data), v)
	return data
}

// Key returns the digest of the text so far.
func (h *Hash) Key() Key {
	sum := sha256.Sum256(h.text)
	return Key(hex.EncodeToString(sum[:]))
}

// Text returns the lines so far.
func (h *Hash) Text() string { return string(h.text) }

// Explain returns the first line in which two key texts differ, as "was" and "now" ("" where a side ends).
func Explain(old, new string) (was, now string) {
	for old != "" || new != "" {
		was, old, _ = strings.Cut(old, "\n")
		now, new, _ = strings.Cut(new, "\n")
		if was != now {
			return was, now
		}
	}
	return "", ""
}
