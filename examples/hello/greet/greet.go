// Package greet knows how to say hello.
package greet

import (
	_ "embed"
	"fmt"
	"strings"
)

// A line is a language and its word: "de Hallo\n".
//
//go:embed words.txt
var words string

// In greets who in the language of a locale such as "de_DE.UTF-8", and in English where it has no word.
func In(locale, who string) string {
	language, _, _ := strings.Cut(locale, "_")
	greeting := "Hello"
	for line := range strings.Lines(words) {
		if code, word, ok := strings.Cut(strings.TrimSpace(line), " "); ok && code == language {
			greeting = word
		}
	}
	return fmt.Sprintf("%s, %s!", greeting, who)
}
