package layer

import (
	"fmt"
	"os"
	"testing"
)

// Owners, devices and whiteouts are what these tests are about, and only root can make them. What a user's build does with one id is
// among root's runs of the same cases (TestApplyMapped), and in the scripts of cmd/img as users.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("NOT RUN: snapshot/layer needs root; root's run has it")
		os.Exit(0)
	}
	os.Exit(m.Run())
}
