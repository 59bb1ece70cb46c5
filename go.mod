module github.com/pavise-project/pavise

go 1.26
