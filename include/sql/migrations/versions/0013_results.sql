-- What campaigns achieved, kept.
SELECT 1;
