package exec

import (
	"io"
	"strings"
	"testing"

	"img/dag"
)

// A step never silently runs with another network than it asked for.
func TestRunNetwork(t *testing.T) {
	_, _, err := New(Options{}).run(t.Context(), &dag.Run{Network: "private"}, "linux/amd64", nil, io.Discard)
	if err == nil || !strings.Contains(err.Error(), `network "private"`) {
		t.Errorf("error %v", err)
	}
}
