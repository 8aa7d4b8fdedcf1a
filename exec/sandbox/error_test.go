package sandbox

import (
	"errors"
	"testing"
)

// What libcontainer says about a start that failed becomes an exit code where the program is at fault, and else words about what the
// Dockerfile asked for.
func TestErrorText(t *testing.T) {
	const init = "unable to start container process: error during container init: "
	for _, c := range []struct {
		text string
		code int
		want string
	}{
		{`unable to start container process: exec: "nope": executable file not found in $PATH`, 127, `exec: "nope": executable file not found in $PATH`},
		{`unable to start container process: exec: "/bin/sh": stat /bin/sh: no such file or directory`, 127, `exec: "/bin/sh": stat /bin/sh: no such file or directory`},
		{`unable to start container process: exec: "/x": permission denied`, 126, `exec: "/x": permission denied`},
		{`unable to start container process: exec: "/": is a directory`, 126, `exec: "/": is a directory`},
		{init + `error mounting "/run/a" to rootfs at "/src/x": create mountpoint for /src/x mount: make mountpoint "/src/x": mkdirat /root/src/x: read-only file system`,
			0, `mount at /src/x: create mountpoint for /src/x mount: make mountpoint "/src/x": mkdirat /src/x: read-only file system`},
		{init + `error mounting "tmpfs" to rootfs at "/f": mount src=tmpfs, dst=/f, dstFd=/proc/thread-self/fd/15, flags=MS_NOSUID: not a directory`,
			0, `mount at /f: not a directory`},
		{init + `something else`, 0, `start process: ` + init + `something else`},
	} {
		err := startError("/root", errors.New(c.text))
		var exit *ExitError
		code := 0
		if errors.As(err, &exit) {
			code = exit.Code
		}
		if code != c.code || err.Error() != c.want {
			t.Errorf("%s\nbecame %d %q", c.text, code, err)
		}
	}
}

func FuzzMountError(f *testing.F) {
	f.Add("/root", `error mounting "a" to rootfs at "/b": mount src=: x`)
	f.Add("", `" to rootfs at "": mount src=`)
	f.Fuzz(func(t *testing.T, root, text string) {
		if err := mountError(root, text); err != nil && err.Error() == "" {
			t.Error("no words")
		}
	})
}
