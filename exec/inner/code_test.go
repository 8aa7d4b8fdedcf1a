package inner

import (
	"math"
	"reflect"
	"testing"
	"time"
)

type kinds struct {
	Bool    bool
	Int     int
	Int8    int8
	Int64   int64
	Uint32  uint32
	Uint64  uint64
	String  string
	Bytes   []byte
	Strings []string
	Pointer *uint32
	Deep    **string
	Map     map[string][]int
	Array   [2]string
	Struct  struct{ A, B string }
	Structs []struct{ N *int }
	hidden  int
}

func to[T any](v T) *T { return &v }

// What crosses is what was sent: names that are not UTF-8, nil and empty, zero and missing.
func TestMarshal(t *testing.T) {
	for _, want := range []kinds{
		{},
		{Bytes: []byte{}, Strings: []string{}, Map: map[string][]int{}, Pointer: to(uint32(0)), Structs: []struct{ N *int }{}},
		{
			Bool: true, Int: math.MinInt, Int8: -128, Int64: math.MaxInt64, Uint32: math.MaxUint32, Uint64: math.MaxUint64,
			String: "a\xff\x00\u2028\"", Bytes: []byte{0, 255}, Strings: []string{"", "\xc3"}, Pointer: to(uint32(7)), Deep: to(to("")),
			Map: map[string][]int{"\xfe": {1}, "": nil}, Array: [2]string{"x", ""}, Struct: struct{ A, B string }{"a", "b"},
			Structs: []struct{ N *int }{{nil}, {to(0)}, {to(-1)}},
		},
	} {
		b, err := Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := kinds{Bool: true, Strings: []string{"old"}, Pointer: to(uint32(1)), Map: map[string][]int{"old": nil}}
		if err := Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		for n := range b { // cut anywhere, it is refused
			if err := Unmarshal(b[:n], &kinds{}); err == nil {
				t.Errorf("%x, cut to %d bytes, was read", b, n)
			}
		}
		if err := Unmarshal(append(b, 0), &kinds{}); err == nil {
			t.Errorf("%x with another byte was read", b)
		}
	}
	if b, err := Marshal(&kinds{hidden: 1}); err != nil || len(b) == 0 {
		t.Errorf("a pointer: %x, %v", b, err)
	}
}

// What could not be read back is not sent.
func TestCannotCross(t *testing.T) {
	for _, v := range []any{func() {}, make(chan int), 1.5, []any{1}, time.Time{}, struct{ E error }{}, map[string]any{"": 1}} {
		if b, err := Marshal(v); err == nil {
			t.Errorf("a %T was sent as %x", v, b)
		}
	}
	for _, v := range []any{nil, 1, (*int)(nil), new(any)} {
		if err := Unmarshal([]byte{0}, v); err == nil {
			t.Errorf("a byte was read into a %T", v)
		}
	}
	if b, err := Marshal(nil); err != nil || len(b) != 0 {
		t.Errorf("nil: %x, %v", b, err)
	}
}

// Bytes from nowhere are refused or read, and what is read says the same when it is written again.
func FuzzUnmarshal(f *testing.F) {
	for _, v := range []kinds{{}, {String: "x", Bytes: []byte("y"), Pointer: to(uint32(0)), Map: map[string][]int{"a": {1, 2}}}} {
		b, err := Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{1, 1, 1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, again kinds
		if Unmarshal(b, &got) != nil {
			return
		}
		text, err := Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(text, &again); err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("%+v became %+v, %v", got, again, err)
		}
	})
}
