// Command pavise is the agent of one host, and the tool to talk to it.
package main

import "os"

func main() { os.Exit(newApp().main(os.Args[1:])) }
