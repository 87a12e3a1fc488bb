//go:build !unix

package main

import "math"

// maxOpenFiles returns how many file descriptors this process may have: there is no limit.
func maxOpenFiles() int { return math.MaxInt32 }
