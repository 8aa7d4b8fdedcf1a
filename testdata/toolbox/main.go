// Command tool is what test scripts use on both sides: on the host, to make inputs and to check results, and inside
// images, where it lies as /bin/tool.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

var tools = map[string]func(args []string) error{
	"agent":   agent,
	"layers":  layers,
	"odd":     odd,
	"socket":  socket,
	"overlap": overlap,
	"stamp":   stamp,
	"tar":     writeTar,
	"mtime":   mtime,
	"within":  within,
	"waitfor": waitFor,
	"digest":  digest,
}

func main() {
	if len(os.Args) < 2 || tools[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "tool: no such tool:", strings.Join(os.Args[1:], " "))
		os.Exit(2)
	}
	if err := tools[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "tool %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// socket PATH: leaves a socket there.
func socket(args []string) error {
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l.Close()
}

// stamp FILE MILLISECONDS: sleeps and writes "START END", nanoseconds since 1970.
func stamp(args []string) error {
	ms, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	start := time.Now()
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return os.WriteFile(args[0], fmt.Appendf(nil, "%d %d\n", start.UnixNano(), time.Now().UnixNano()), 0o644)
}

// overlap FILE...: checks that at some moment all the spans that stamp wrote were under way.
func overlap(files []string) error {
	var lastStart, firstEnd int64
	for i, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var start, end int64
		if _, err := fmt.Sscan(string(text), &start, &end); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if i == 0 || end < firstEnd {
			firstEnd = end
		}
		lastStart = max(lastStart, start)
	}
	if lastStart >= firstEnd {
		return fmt.Errorf("the last began %s after the first ended", time.Duration(lastStart-firstEnd))
	}
	return nil
}

// mtime FILE...: prints each file's modification time in seconds.
func mtime(files []string) error {
	for _, f := range files {
		info, err := os.Lstat(f)
		if err != nil {
			return err
		}
		fmt.Println(info.ModTime().Unix(), f)
	}
	return nil
}

// waitFor FILE SECONDS: waits until a file exists.
func waitFor(args []string) error {
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(deadline); {
		if _, err := os.Lstat(args[0]); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s did not appear within %d s", args[0], seconds)
}
