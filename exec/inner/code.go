package inner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
)

// What crosses is written without its type, since both ends are one program:
//
//	bool             a byte, 0 or 1
//	int, uint        a varint, as in encoding/binary
//	string           its length as a uvarint, its bytes
//	slice, map       0 for nil, else the length + 1 as a uvarint and the elements, a map's with its key before each
//	pointer          0 for nil, else 1 and what it points at
//	array, struct    the elements, the exported fields
//
// encoding/json would damage strings that are not UTF-8, as names of files may be, and encoding/gob loses pointers to zero.

// errForm is the error of bytes that are not what was expected.
var errForm = errors.New("cut short, or of another form")

// Marshal is v, or what it points at, as it crosses. Numbers, strings, structs of their exported fields, and slices, maps and pointers of
// those can cross; nil is no bytes at all.
func Marshal(v any) ([]byte, error) {
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.Pointer {
		r = r.Elem()
	}
	if !r.IsValid() {
		return nil, nil
	}
	return appendValue(nil, r)
}

func appendValue(b []byte, v reflect.Value) (_ []byte, err error) {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1), nil
		}
		return append(b, 0), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(b, v.Int()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return binary.AppendUvarint(b, v.Uint()), nil
	case reflect.String:
		return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...), nil
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0), nil
		}
		return appendValue(append(b, 1), v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return append(b, 0), nil
		}
		b = binary.AppendUvarint(b, uint64(v.Len())+1)
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return append(b, v.Bytes()...), nil
		}
		return appendElements(b, v)
	case reflect.Array:
		return appendElements(b, v)
	case reflect.Map:
		return appendMap(b, v)
	case reflect.Struct:
		return appendStruct(b, v)
	}
	return nil, fmt.Errorf("a %s cannot cross", v.Type())
}

func appendElements(b []byte, v reflect.Value) (_ []byte, err error) {
	for i := 0; i < v.Len() && err == nil; i++ {
		b, err = appendValue(b, v.Index(i))
	}
	return b, err
}

func appendMap(b []byte, v reflect.Value) (_ []byte, err error) {
	if v.IsNil() {
		return append(b, 0), nil
	}
	b = binary.AppendUvarint(b, uint64(v.Len())+1)
	for i := v.MapRange(); i.Next(); {
		if b, err = appendValue(b, i.Key()); err != nil {
			return nil, err
		}
		if b, err = appendValue(b, i.Value()); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendStruct(b []byte, v reflect.Value) (_ []byte, err error) {
	hidden := 0
	for i := range v.NumField() {
		if f := v.Field(i); !f.CanInterface() {
			hidden++
		} else if b, err = appendValue(b, f); err != nil {
			return nil, err
		}
	}
	if hidden > 0 && hidden == v.NumField() { // as in time.Time, of which nothing would be left
		return nil, fmt.Errorf("a %s cannot cross", v.Type())
	}
	return b, nil
}

// Unmarshal reads what Marshal wrote into the variable that v points at, whose type must be the one that was written.
func Unmarshal(b []byte, v any) error {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Pointer || r.IsNil() {
		return fmt.Errorf("nothing can be read into a %T", v)
	}
	d := decoder{b}
	if err := d.value(r.Elem()); err != nil {
		return fmt.Errorf("read a %s: %w", r.Type().Elem(), err)
	}
	if len(d.rest) > 0 {
		return fmt.Errorf("read a %s: %w", r.Type().Elem(), errForm)
	}
	return nil
}

type decoder struct{ rest []byte }

func (d *decoder) value(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Bool:
		n, err := d.uvarint()
		v.SetBool(n == 1)
		return errors.Join(err, is(n <= 1))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, size := binary.Varint(d.rest)
		if size <= 0 || v.OverflowInt(n) {
			return errForm
		}
		d.rest = d.rest[size:]
		v.SetInt(n)
		return nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		n, err := d.uvarint()
		v.SetUint(n)
		return errors.Join(err, is(!v.OverflowUint(n)))
	case reflect.String:
		n, err := d.uvarint()
		if err != nil {
			return err
		}
		b, err := d.take(n)
		v.SetString(string(b))
		return err
	case reflect.Pointer:
		return d.pointer(v)
	case reflect.Slice:
		return d.slice(v)
	case reflect.Array:
		return d.elements(v)
	case reflect.Map:
		return d.mapping(v)
	case reflect.Struct:
		return d.fields(v)
	}
	return fmt.Errorf("a %s cannot cross", v.Type())
}

func is(ok bool) error {
	if ok {
		return nil
	}
	return errForm
}

func (d *decoder) uvarint() (uint64, error) {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		return 0, errForm
	}
	d.rest = d.rest[size:]
	return n, nil
}

func (d *decoder) take(n uint64) ([]byte, error) {
	if n > uint64(len(d.rest)) {
		return nil, errForm
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b, nil
}

// length reads how many elements follow, none of which has no bytes: memory grows with what has come, not with what it says.
func (d *decoder) length() (n int, given bool, err error) {
	plus, err := d.uvarint()
	if err != nil || plus == 0 {
		return 0, false, err
	}
	if plus-1 > uint64(len(d.rest)) {
		return 0, false, errForm
	}
	return int(plus - 1), true, nil
}

func (d *decoder) pointer(v reflect.Value) error {
	n, err := d.uvarint()
	if err != nil || n > 1 {
		return errForm
	}
	if n == 0 {
		v.SetZero()
		return nil
	}
	v.Set(reflect.New(v.Type().Elem()))
	return d.value(v.Elem())
}

func (d *decoder) slice(v reflect.Value) error {
	n, given, err := d.length()
	if err != nil || !given {
		v.SetZero()
		return err
	}
	v.Set(reflect.MakeSlice(v.Type(), n, n))
	if v.Type().Elem().Kind() == reflect.Uint8 {
		b, err := d.take(uint64(n))
		copy(v.Bytes(), b)
		return err
	}
	return d.elements(v)
}

func (d *decoder) elements(v reflect.Value) error {
	for i := range v.Len() {
		if err := d.value(v.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) mapping(v reflect.Value) error {
	n, given, err := d.length()
	if err != nil || !given {
		v.SetZero()
		return err
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), n))
	for range n {
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if err := d.value(key); err != nil {
			return err
		}
		if err := d.value(value); err != nil {
			return err
		}
		v.SetMapIndex(key, value)
	}
	return nil
}

func (d *decoder) fields(v reflect.Value) error {
	for i := range v.NumField() {
		if f := v.Field(i); f.CanSet() {
			if err := d.value(f); err != nil {
				return err
			}
		}
	}
	return nil
}
