"""What a job will take, known before it takes anything: tokens, operations, memory, price."""
