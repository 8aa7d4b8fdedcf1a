package sandbox

import (
	"context"
	"errors"
	"os"
	"testing"
)

func TestTrue(t *testing.T) {
	out, _, err := output(t, newSpec(t, newRoot(t), "/bin/echo", "hi"))
	if err != nil || out != "hi\n" {
		t.Fatalf("%q, %v", out, err)
	}
}

func TestProbe(t *testing.T) {
	out, _, err := output(t, newSpec(t, newRoot(t), "/bin/probe", "fds,ids,env,status,calls,paths,devices,net,limits"))
	t.Logf("%s, %v", out, err)
}

func BenchmarkRun(b *testing.B) {
	root := newRoot(b)
	for b.Loop() {
		if _, err := Run(b.Context(), newSpec(b, root, "/bin/true")); err != nil {
			b.Fatal(err)
		}
	}
}

var _ = context.Background
var _ = errors.New
var _ = os.Stat
