// Command hello greets whoever is named on the command line, in the language of LANG.
package main

import (
	"fmt"
	"os"
	"strings"

	"hello/greet"
)

func main() {
	who := "world"
	if len(os.Args) > 1 {
		who = strings.Join(os.Args[1:], " ")
	}
	fmt.Println(greet.In(os.Getenv("LANG"), who))
}
