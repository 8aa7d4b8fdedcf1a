package exec

import (
	"errors"
	"fmt"
	"reflect"
	"syscall"
	"testing"

	"img/engine"
	"img/exec/inner"
	"img/exec/sandbox"
	"img/snapshot/layer"
	"img/userns"
)

// cross does to an error what the wire does.
func cross(err error) error {
	out := &inner.Error{Msg: err.Error()}
	var k inner.Kinder
	if errors.As(wire(err), &k) {
		kind, data := k.WireKind()
		out.Kind = kind
		out.Data, _ = inner.Marshal(data)
	}
	return fromWire(out)
}

// An error of the inner process has the same words and the same type in the first one.
func TestWire(t *testing.T) {
	for _, c := range []struct {
		err  error
		same func(error) bool
	}{
		{errors.New("plain"), func(err error) bool { return true }},
		{&sandbox.ExitError{Code: 3}, is(func(e *sandbox.ExitError) bool { return e.Code == 3 })},
		{fmt.Errorf("write: %w", syscall.ENOSPC), func(err error) bool { return errors.Is(err, syscall.ENOSPC) }},
		{&userns.Error{Err: errors.New("no"), Remedy: "do"}, is(func(e *userns.Error) bool { return e.Remedy == "do" })},
		{&changedError{"a file"}, func(err error) bool { return errors.Is(err, errChanged) }},
	} {
		if got := cross(c.err); got.Error() != c.err.Error() || !c.same(got) {
			t.Errorf("%v became %v (%T)", c.err, got, got)
		}
	}
}

func is[E error](ok func(E) bool) func(error) bool {
	return func(err error) bool {
		var e E
		return errors.As(err, &e) && ok(e)
	}
}

// A panic of a handler is a bug here, too, with the stack that it had there.
func TestWirePanic(t *testing.T) {
	stack, err := inner.Marshal("goroutine 7")
	if err != nil {
		t.Fatal(err)
	}
	var p *engine.PanicError
	err = fromWire(&inner.Error{Msg: "panic in run: nil map", Kind: inner.KindPanic, Data: stack})
	if !errors.As(err, &p) || p.Value != "panic in run: nil map" || p.Stack != "goroutine 7" {
		t.Errorf("got %v (%T)", err, err)
	}
}

// Whatever crosses arrives as it was: names that are not UTF-8, pointers to zero, what is nil.
func TestWireValues(t *testing.T) {
	values := []any{
		setup{}, setupReply{}, lockArgs{}, lockReply{}, runArgs{}, copyArgs{}, fetchedArgs{}, mergeArgs{}, mkdirArgs{}, packArgs{}, packReply{},
		unpackArgs{}, exportArgs{}, removeArgs{}, written{}, extractReply{}, layer.Applied{},
	}
	for _, op := range samples() {
		values = append(values, reflect.ValueOf(op).Elem().Interface())
	}
	for _, sample := range values {
		for _, number := range []int{0, 1} {
			want, got := reflect.New(reflect.TypeOf(sample)), reflect.New(reflect.TypeOf(sample))
			fill(want.Elem(), number)
			text, err := inner.Marshal(want.Interface())
			if err != nil {
				t.Errorf("%T: %v", sample, err)
			} else if err := inner.Unmarshal(text, got.Interface()); err != nil || !reflect.DeepEqual(got.Interface(), want.Interface()) {
				t.Errorf("%+v\nbecame %+v, %v", want.Elem(), got.Elem(), err)
			}
		}
	}
}

// fill gives a value to all that crosses of v: nothing of it is nil.
func fill(v reflect.Value, number int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("a\xff")
	case reflect.Bool:
		v.SetBool(number > 0)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), number)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), number)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, number)
		fill(value, number)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), number)
			}
		}
	default:
		v.Set(reflect.ValueOf(number).Convert(v.Type()))
	}
}
