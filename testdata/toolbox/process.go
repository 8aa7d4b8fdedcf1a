package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// within SECONDS COMMAND...: runs a command, passes on its exit code, and fails with 124 if it takes longer.
func within(args []string) error {
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return err
	}
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	start := time.Now()
	err = cmd.Run()
	if took := time.Since(start); took.Seconds() > seconds {
		fmt.Fprintf(os.Stderr, "tool within: took %s, not %s s\n", took, args[0])
		os.Exit(124)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}

// digest FILE...: prints the sha256 of each file.
func digest(files []string) error {
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		fmt.Printf("sha256:%x\n", sha256.Sum256(data))
	}
	return nil
}
